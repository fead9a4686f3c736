"""The tensors of a `.pt2`: raw bytes and what a JSON file says of them. What is a pickle is refused."""

from __future__ import annotations

import re
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._export.serde import schema
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

from qn_deploy.errors import InputError
from qn_deploy.program.allow_list import is_path
from qn_deploy.program.members import DAMAGED, Members, read_json

_RAW = re.compile(r"(weight|tensor)_\d{1,9}", re.ASCII)
_FREE = 1 << 24  # elements that a tensor may have beyond those in its bytes, by strides of 0
_RANK = 64


def read_tensors(members: Members, folder: str, config: str) -> dict[str, Tensor]:
    """The tensors that a configuration lists, in memory of their own; those of the same bytes and shape are the same tensor.

    Args:
        members: of the archive.
        folder: where the tensors lie, "archive/data/weights/".
        config: the name of the JSON there: for each tensor its `path_name`, `is_param`, `use_pickle` and `tensor_meta`.

    Raises:
        InputError: one is a pickle, is missing, or its size doesn't fit its bytes.
    """
    if folder + config not in members:
        raise InputError(
            f"holds no {config}, as an archive of torch before 2.9; load it with that torch and save it with torch 2.13 or later"
        )
    entries = read_json(members[folder + config], config)
    try:
        entries = entries["config"]
        found = {
            name: (entry["path_name"], entry["is_param"], entry["use_pickle"], entry["tensor_meta"]) for name, entry in entries.items()
        }
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{config} is no list of tensors: the file {DAMAGED}") from None
    made: dict[Any, Tensor] = {}
    return {name: _tensor(name, entry, members, folder, made) for name, entry in found.items()}


def _tensor(name: str, entry: tuple[Any, ...], members: Members, folder: str, made: dict[Any, Tensor]) -> Tensor:
    path, is_param, use_pickle, meta = entry
    if not is_path(name):
        raise InputError(f"the name {name[:100]!r} of a tensor holds other characters than letters, digits, _ and -; rename the module")
    if use_pickle is not False or not isinstance(path, str) or not _RAW.fullmatch(path):
        raise InputError(
            f"{name} is stored as a pickle ({str(path)[:50]}), which is never opened: it is a tensor of a class of its own or a custom "
            "object; make it a plain tensor and save the model again"
        )
    if folder + path not in members:
        raise InputError(f"{name} has no bytes ({path}): the file {DAMAGED}")
    dtype, sizes, strides, offset = _layout(name, meta)
    key = (path, dtype, tuple(sizes), tuple(strides), offset, bool(is_param))
    if key not in made:
        tensor = _from_bytes(name, members[folder + path], dtype, sizes, strides, offset)
        made[key] = nn.Parameter(tensor, bool(meta["requires_grad"]) and dtype.is_floating_point) if is_param is True else tensor
    return made[key]


def _layout(name: str, meta: Any) -> tuple[torch.dtype, list[int], list[int], int]:
    """dtype, sizes, strides and offset in elements."""
    try:
        numbers = [[entry["as_int"] for entry in meta[key]] for key in ("sizes", "strides")]
        offset = meta["storage_offset"]["as_int"]
        dtype, layout = _SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]], meta["layout"]
    except (KeyError, TypeError):
        raise InputError(f"{name} has no dtype and fixed sizes: the file {DAMAGED}") from None
    if layout != schema.Layout.Strided:
        raise InputError(f"{name} is a sparse tensor; a program holds dense tensors only")
    sizes, strides = numbers
    whole = all(type(number) is int and 0 <= number < 2**40 for number in (*sizes, *strides, offset))
    if not whole or len(sizes) != len(strides) or len(sizes) > _RANK:
        raise InputError(f"{name} has the sizes {str(sizes)[:100]} and strides {str(strides)[:100]}, which no tensor has")
    return dtype, sizes, strides, offset


def _from_bytes(name: str, content: memoryview, dtype: torch.dtype, sizes: list[int], strides: list[int], offset: int) -> Tensor:
    stored, rest = divmod(len(content), dtype.itemsize)
    reach = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1
    if prod(sizes) == 0:
        return torch.empty(sizes, dtype=dtype)
    if rest or reach > stored or prod(sizes) > max(stored, _FREE):
        raise InputError(f"{name} of {dtype} {sizes} does not fit its {len(content):,} bytes: the file {DAMAGED}")
    flat = torch.frombuffer(bytearray(content), dtype=dtype)
    return flat.as_strided(sizes, strides, offset).clone()  # memory of torch's own alignment, and no view
