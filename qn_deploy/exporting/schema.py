"""JSON to frozen dataclasses: every field is there, of its declared type and within its bounds, and nothing else is there.

The dataclasses themselves are the schema. `Annotated[str, re.compile(...)]` is text that the pattern matches as a whole, `Annotated[int,
range(...)]` a number in the range; every other text, number and collection has the bounds below. pydantic would do it as well: this is all
that we need of it, and no dependency.
"""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

MAX_TEXT = 10_000  # characters
MAX_ENTRIES = 100_000  # of a list or dict
MAX_INT = 1 << 53  # what every JSON reader keeps
MAX_DEPTH = 32
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def from_json(kind: Any, value: Any, where: str = "", depth: int = 0) -> Any:
    """The value as a declared type wants it: tuples for lists, instances of dataclasses for dicts.

    Args:
        kind: a dataclass, a type of plain values, tuple[X, ...], dict[str, X], X | None, Literal, Annotated, or Any.
        value: what json.loads gave.
        where: the field's name, for messages.
        depth: of `value` in the whole.

    Raises:
        ValueError: the value does not fit; the message names the field.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested too deeply")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _bounded(from_json(arguments[0], value, where, depth), arguments[1], where)
    if origin in (Union, UnionType):
        return None if value is None and NoneType in arguments else from_json(arguments[0], value, where, depth)
    if origin is Literal:
        if value not in arguments:
            raise _wrong(where, value, " or ".join(map(repr, arguments)))
        return value
    if origin is tuple:
        return tuple(from_json(arguments[0], each, f"{where}[{index}]", depth + 1) for index, each in enumerate(_sized(list, value, where)))
    if origin is dict:
        return {
            from_json(arguments[0], name, f"a key of {where}", depth): from_json(arguments[1], each, f"{where}/{name}"[:200], depth + 1)
            for name, each in _sized(dict, value, where).items()
        }
    if is_dataclass(kind):
        return _instance(kind, value, where, depth)
    return _any(value, where, depth) if kind is Any else _plain(kind, value, where)


def _instance(kind: Any, value: Any, where: str, depth: int) -> Any:
    given, hints = _sized(dict, value, where), get_type_hints(kind, include_extras=True)
    if strange := sorted(given.keys() - hints.keys()):
        raise ValueError(f"{where} has an entry {strange[0][:100]!r}")
    if missing := [entry.name for entry in fields(kind) if entry.name not in given]:
        raise ValueError(f"{where or 'it'} has no {missing[0]!r}")
    return kind(**{name: from_json(hints[name], each, f"{where}/{name}".lstrip("/"), depth + 1) for name, each in given.items()})


def _plain(kind: type, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= MAX_INT else math.inf
    if type(value) is not kind:
        raise _wrong(where, value, kind.__name__)
    if isinstance(value, str) and (len(value) > MAX_TEXT or _CONTROL.search(value)):
        raise ValueError(f"{where} is too long or holds control characters")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(where, value, "a number")
    if type(value) is int and not -MAX_INT <= value <= MAX_INT:
        raise _wrong(where, "a giant", f"at most {MAX_INT}")
    return value


def _any(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, list):
        return [from_json(Any, each, where, depth + 1) for each in _sized(list, value, where)]
    if isinstance(value, dict):
        return {_plain(str, name, where): from_json(Any, each, where, depth + 1) for name, each in _sized(dict, value, where).items()}
    return value if value is None else _plain(type(value), value, where)


def _bounded(value: Any, bound: Any, where: str) -> Any:
    fits = bound.fullmatch(value) if isinstance(bound, re.Pattern) else value in bound
    if not fits:
        expected = bound.pattern if isinstance(bound, re.Pattern) else f"{bound.start} to {bound.stop - 1}"
        raise _wrong(where, value, expected)
    return value


def _sized(kind: type[list[Any]] | type[dict[str, Any]], value: Any, where: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(where, value, kind.__name__)
    if (count := len(value)) > MAX_ENTRIES:
        raise ValueError(f"{where} has {count:,} entries, expected at most {MAX_ENTRIES:,}")
    return value


def _wrong(where: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{where or 'it'} is {repr(value)[:100]}, expected {expected}")
