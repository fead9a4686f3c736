"""Configurations as plain data and back: every stage that made a program stands in its provenance in this form."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from qn_deploy.errors import InputError

Config = TypeVar("Config")
_PLAIN = (bool, int, float, str, type(None))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as what JSON holds: `from_dict` makes an equal one of it.

    Args:
        config: a dataclass of numbers, text, None, tuples, enums, dicts by text, and dataclasses of these.

    Raises:
        TypeError: a field holds something else: that is a mistake in the configuration's class.
    """
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(kind: type[Config], data: Any) -> Config:
    """The configuration that `to_dict` took apart.

    Args:
        kind: its dataclass.
        data: what `to_dict` gave, also by way of JSON; fields that are left out have their defaults.

    Raises:
        InputError: a field is unknown, is missing, or holds a value of another type; the message names it.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"a {kind.__name__} is a map from fields to values; found {data!r:.100}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    if unknown := [str(name) for name in data if name not in fields]:
        raise InputError(f"{kind.__name__} has no {unknown[0][:100]}; its fields are {', '.join(fields)}")
    hints = get_type_hints(kind)
    values = {name: _typed(hints[name], value, f"{kind.__name__}.{name}") for name, value in data.items()}
    no_default = (dataclasses.MISSING, dataclasses.MISSING)
    if missing := [name for name, field in fields.items() if name not in values and (field.default, field.default_factory) == no_default]:
        raise InputError(f"{kind.__name__} needs a value for {missing[0]}")
    return kind(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, _PLAIN):
        return value
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(entry) for key, entry in value.items()}
    raise TypeError(f"a configuration holds a {type(value).__name__}; it can't be written as JSON")


def _typed(hint: Any, value: Any, where: str) -> Any:
    """The value as its type asks: tuples for lists, enums for their values, floats for whole numbers."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first(arguments, value, where)
    if origin is Literal and any(type(value) is type(choice) and value == choice for choice in arguments):
        return value
    if origin is tuple and isinstance(value, list | tuple):
        if len(arguments) == 2 and arguments[1] is ...:
            arguments = (arguments[0],) * len(value)
        if len(arguments) == len(value):
            return tuple(_typed(each, entry, where) for each, entry in zip(arguments, value, strict=True))
    if origin in (dict, Mapping) and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _typed(arguments[1], entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(hint, type) and origin is None:
        if dataclasses.is_dataclass(hint):
            return from_dict(hint, value)
        if issubclass(hint, Enum) and value in [member.value for member in hint]:
            return hint(value)
        if hint is float and type(value) is int:
            return float(value)
        if type(value) is hint:
            return value
    raise InputError(f"{where} is {value!r:.100}; expected {_name(hint)}")


def _first(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The value as the first of some types that takes it; one that needs no change comes before the others."""
    if type(value) in kinds:
        return value
    for kind in kinds:
        try:
            return _typed(kind, value, where)
        except InputError:
            continue
    raise InputError(f"{where} is {value!r:.100}; expected {' or '.join(map(_name, kinds))}")


def _name(hint: Any) -> str:
    if hint is type(None):
        return "None"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
