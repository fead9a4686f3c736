"""Tensor files, which the runners read and write: for each tensor a line `dtype size size ...`, then its elements, row-major."""

from __future__ import annotations

import torch

from qn_deploy.errors import InputError
from qn_deploy.program.program import Batch

_KINDS = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
}


def to_bytes(batch: Batch) -> bytes:
    """The file of these tensors.

    Raises:
        InputError: a dtype has no place in such a file.
    """
    parts = []
    for tensor in batch:
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in _KINDS:
            raise InputError(f"devices take no {name} tensors; expected one of {', '.join(_KINDS)}")
        parts += [" ".join((name, *map(str, tensor.shape))).encode(), b"\n", tensor.detach().contiguous().numpy().tobytes()]
    return b"".join(parts)


def from_bytes(data: bytes) -> Batch:
    """The tensors of a file.

    Raises:
        InputError: it is no such file, or is cut off.
    """
    batch, at = [], 0
    while at < len(data):
        try:
            end = data.index(b"\n", at)
            name, *sizes = data[at:end].decode().split(" ")
            kind, shape = _KINDS[name], tuple(map(int, sizes))
            tensor = torch.empty(shape, dtype=kind)
            values = bytearray(data[end + 1 : end + 1 + tensor.nbytes])
            batch.append(torch.frombuffer(values, dtype=kind).reshape(shape) if values else tensor)
            if len(values) < tensor.nbytes:
                raise ValueError("cut off")
        except (ValueError, KeyError, RuntimeError, TypeError):
            raise InputError(f"the device returned no tensor file: at byte {at} there is {data[at : at + 40]!r}") from None
        at = end + 1 + len(values)
    return tuple(batch)
