"""Names for what a model returns, and which of it a program returns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from qn_deploy.errors import ExportError


@dataclass(frozen=True)
class Outputs:
    """The outputs that a program returns.

    Attributes:
        kept: their indices among all leaves of what the model returns.
        names: a name for each.
        tensors: their values.
        notes: what was left out, a line each.
    """

    kept: tuple[int, ...]
    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    notes: tuple[str, ...]


def outputs_of(returned: Any) -> Outputs:
    """Names the tensors in what a model returned: by the keys of dicts and the fields of dataclasses, by numbers in tuples and lists.

    What lies in an object of any other class, a cache of keys and values, is left out, and so is what is no tensor.

    Args:
        returned: tensors in tuples, lists, dicts and dataclasses.

    Raises:
        ExportError: there is no tensor.
    """
    kept, paths, tensors = [], [], []
    notes: dict[object, str] = {}
    for index, (path, leaf) in enumerate(pytree.tree_flatten_with_path(returned)[0]):
        opaque = _opaque(returned, path)
        where = ".".join(_word(key) for key in path) or "output"
        if opaque is not None:
            notes[opaque] = (
                f"output {opaque[0]} is left out: a {opaque[1]} is no tensor, tuple, list, dict or dataclass. A cache is switched off by "
                "the model's own option, use_cache=False for example"
            )
        elif isinstance(leaf, Tensor):
            kept.append(index)
            paths.append(path)
            tensors.append(leaf)
        elif leaf is not None:
            notes[where] = f"output {where} is left out: it is a {type(leaf).__name__}, and a program returns tensors"
    if not tensors:
        raise ExportError(f"the model returns {type(returned).__name__} without a tensor; a program returns tensors")
    return Outputs(tuple(kept), names_of(paths), tuple(tensors), tuple(notes.values()))


def _opaque(returned: Any, path: tuple[Any, ...]) -> tuple[str, str] | None:
    """(place, class) of the object on the way to a leaf that is no plain container; None if there is none."""
    value = returned
    for depth, key in enumerate(path):
        if not isinstance(value, tuple | list | Mapping) and not is_dataclass(value):
            return ".".join(_word(each) for each in path[:depth]) or "output", type(value).__name__
        value = key.get(value)
    return None


def _word(key: Any) -> str:
    value = next(getattr(key, field) for field in ("key", "idx", "name") if hasattr(key, field))
    return re.sub(r"\W", "_", str(value), flags=re.ASCII)


def apart(names: Iterable[str], taken: Iterable[Any]) -> tuple[str, ...]:
    """The names, each with as many underscores after it as it takes to differ from the others and from those that are taken."""
    used, found = set(map(str, taken)), []
    for name in names:
        while name in used:
            name += "_"
        used.add(name)
        found.append(name)
    return tuple(found)


def names_of(paths: list[tuple[Any, ...]]) -> tuple[str, ...]:
    """A name for each leaf, from the keys on the way to it."""
    if len(paths) == 1 and not any(isinstance(key, pytree.MappingKey | pytree.GetAttrKey) for key in paths[0]):
        words = ["output"]
    else:
        words = ["_".join(map(_word, path)) for path in paths]
    return tuple(f"output_{word}" if word[:1].isdigit() or not word else word for word in words)
