"""Batches of inputs: a tensor for each input of a program, checked before anything computes with them, and read from `.npz` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.files import read_bytes
from qn_deploy.program.program import Batch, Program

BATCH = 32  # samples run at once, where the program's batch is dynamic
MAX_VALUE = 1e30  # beyond it the steps of int8 leave float32's range
MAX_BYTES = 2 << 30  # of the arrays in a file, also where it is compressed


def as_batch(program: Program, batch: Sequence[Tensor] | Mapping[str, Tensor] | Tensor, where: str = "batch") -> Batch:
    """A batch as a tuple in the order of the program's inputs.

    Args:
        program: that is to take it.
        batch: a tensor for each input: in order, or by name, or one by itself.
        where: what messages call it.

    Raises:
        InputError: an input is missing or unknown, has another dtype or shape than the program takes, or holds NaN, infinity or numbers
            that no range of int8 can hold; the message names it.
    """
    names = program.inputs
    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, Mapping):
        if set(batch) != set(names):
            raise InputError(f"{where} holds the inputs {sorted(map(str, batch))}; the program's inputs are {list(names)}")
        batch = [batch[name] for name in names]
    if len(batch) != len(names):
        raise InputError(f"{where} holds {len(batch)} inputs; the program takes {len(names)}: {', '.join(names)}")
    for name, tensor in zip(names, batch, strict=True):
        _check(tensor, program, name, f"{where}, input {name},")
    return tuple(batch)


def read_batches(path: str | Path, program: Program) -> tuple[Batch, ...]:
    """Reads batches from an `.npz`: arrays named like the program's inputs, samples along the first axis.

    Raises:
        InputError: no such file, no `.npz`, too large, missing or unknown arrays, a wrong dtype or shape, NaN; the message names the array.
    """
    names = program.inputs
    arrays = _read(path)
    if set(arrays) != set(names):
        found = [name[:50] for name in sorted(arrays)]
        raise InputError(f"{path} holds arrays {found}; the model's inputs are {list(names)}. Save with np.savez(path, {names[0]}=...)")
    tensors = [_tensor(path, name, arrays[name], program) for name in names]
    if len({len(tensor) for tensor in tensors}) > 1:
        raise InputError(f"{path}: the arrays hold {[len(tensor) for tensor in tensors]} samples; every input needs the same number")
    dynamic = _sizes(program, names[0])[0] is None
    size = BATCH if dynamic else len(program.golden.inputs[0])
    count = len(tensors[0]) if dynamic else len(tensors[0]) // size * size
    if count == 0:
        raise InputError(f"{path} holds {len(tensors[0])} samples; the model takes batches of {size}")
    batches = (tuple(tensor[start : start + size] for tensor in tensors) for start in range(0, count, size))
    return tuple(as_batch(program, batch, f"{path}: batch {index}") for index, batch in enumerate(batches))


def _check(tensor: Tensor, program: Program, name: str, where: str) -> None:
    example = program.golden.inputs[program.inputs.index(name)]
    if not isinstance(tensor, Tensor):
        raise InputError(f"{where} is a {type(tensor).__name__}; expected a tensor")
    if tensor.dtype != example.dtype or tensor.device.type != "cpu":
        raise InputError(f"{where} is {tensor.dtype} on {tensor.device}; the program takes {example.dtype} on cpu")
    wanted = _sizes(program, name)
    if tensor.ndim != len(wanted) or any(want not in (None, size) for want, size in zip(wanted, tensor.shape, strict=True)):
        raise InputError(f"{where} has the shape {list(tensor.shape)}; the program takes [{_shown(wanted)}]")
    if not tensor.numel() or not tensor.is_floating_point():
        return
    largest = float(tensor.abs().max())
    if not largest < float("inf"):
        raise InputError(f"{where} holds NaN or infinity; clean the data first")
    if largest > MAX_VALUE:
        raise InputError(f"{where} holds {largest:.3g}; expected magnitudes up to {MAX_VALUE:g}, since one outlier takes all steps of int8")


def _read(path: str | Path) -> dict[str, np.ndarray]:
    data = read_bytes(path, MAX_BYTES)
    try:
        archive = np.load(BytesIO(data), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is a single array; batches are an .npz with one array for each input")
        with archive:
            if (size := sum(entry.file_size for entry in archive.zip.infolist())) > MAX_BYTES:  # type: ignore[union-attr]
                raise InputError(f"{path} holds {size:,} bytes of arrays; expected at most {MAX_BYTES:,}")
            arrays = {name: archive[name] for name in archive.files}
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many classes; every one of them means that the file can't be read
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} can't be read as an .npz of plain arrays: {reason}") from None
    if others := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise InputError(f"{path} can't be read as an .npz of plain arrays: {others[0]} is no array")
    return arrays


def _tensor(path: str | Path, name: str, array: np.ndarray, program: Program) -> Tensor:
    wanted = [None, *_sizes(program, name)[1:]]
    if array.ndim != len(wanted) or any(want not in (None, size) for want, size in zip(wanted, array.shape, strict=True)):
        raise InputError(f"{path}: {name} has shape {list(array.shape)}; the model takes [{_shown(wanted)}], samples first")
    kind = str(program.golden.inputs[program.inputs.index(name)].dtype).removeprefix("torch.")
    if array.dtype.name != kind or not array.dtype.isnative:
        order = "" if array.dtype.isnative else ", the bytes of each number in the other order"
        raise InputError(f"{path}: {name} is {array.dtype.name}{order}; the model takes {kind}. Convert with .astype({kind!r})")
    return torch.from_numpy(np.array(array))


def _sizes(program: Program, name: str) -> list[int | None]:
    """The sizes of an input; None for a dynamic one."""
    node = next(node for node in program.exported.graph.nodes if node.name == name)
    return [size if isinstance(size, int) else None for size in node.meta["val"].shape]


def _shown(sizes: list[int | None]) -> str:
    return ", ".join("any" if size is None else str(size) for size in sizes)
