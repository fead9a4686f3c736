"""Whether the JSON of a graph has the types that torch's own schema declares: torch reads it without looking.

A number in place of a name, or of a list, would come to light deep in torch, when the graph is run.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from enum import IntEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from torch._export.serde import schema
from torch._export.serde.union import _Union

from qn_deploy.errors import InputError

_FLOATS = ("Infinity", "-Infinity", "NaN")  # as torch writes what JSON has no number for


def check_types(value: Any, kind: Any = schema.ExportedProgram, where: str = "graph") -> None:
    """Checks a JSON value against a type of torch's schema: a dataclass, a union of them, an enum, a list, a dict or a plain type.

    Args:
        value: the JSON; its keys are known to be on the allow-list.
        kind: what is expected.
        where: the key under which it stands.

    Raises:
        InputError: it is of another type, or a key is missing; the message names the key.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return
        kind = arguments[0]
        origin, arguments = get_origin(kind), get_args(kind)
    if origin is list:
        for each in _expected(list, value, where):
            check_types(each, arguments[0], where)
    elif origin is dict:
        for each in _expected(dict, value, where).values():
            check_types(each, arguments[1], where)
    elif is_dataclass(kind):
        _check_fields(_expected(dict, value, where), kind, where)
    elif issubclass(kind, IntEnum):
        if type(value) is not int or value not in set(kind):
            raise _wrong(where, value, f"a number of {kind.__name__}")
    elif kind is float:
        if type(value) not in (int, float) and value not in _FLOATS:
            raise _wrong(where, value, "a number")
    else:
        _expected(kind, value, where)


def _check_fields(value: dict[str, Any], kind: Any, where: str) -> None:
    declared = _declared(kind)
    if issubclass(kind, _Union):
        if len(value) != 1 or not value.keys() <= declared.keys():
            raise _wrong(where, value, f"one of {', '.join(declared)}")
    elif missing := [name for name, (_, required) in declared.items() if required and name not in value]:
        raise InputError(f"the graph's {where} has no {missing[0]!r}")
    for name, each in value.items():
        if name in declared:
            check_types(each, declared[name][0], name)


@cache
def _declared(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Type of each field of a dataclass, and whether it has to be there."""
    hints = get_type_hints(kind, vars(schema))
    return {entry.name: (hints[entry.name], entry.default is entry.default_factory is MISSING) for entry in fields(kind)}


def _expected(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise _wrong(where, value, kind.__name__)
    return value


def _wrong(where: str, value: Any, expected: str) -> InputError:
    return InputError(f"the graph's {where} {str(value)[:100]!r} is refused; expected {expected}")
