"""Batches of inputs: a tensor for each input of a program, checked before anything computes with them, and read from `.npz` files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qn_deploy.errors import InputError, first_line
from qn_deploy.files import read_bytes
from qn_deploy.program.program import Batch, Program

BATCH = 32  # samples run at once, where the program's batch is dynamic
MAX_VALUE = 1e30  # beyond it the steps of int8 leave float32's range
MAX_BYTES = 2 << 30  # of the arrays in a file, also where it is compressed
NO_TUPLE = "a batch is a {}; give tuples of input tensors, (x,) for a model of one input"


def as_batches(program: Program, batches: Iterable[Any]) -> list[Batch]:
    """Batches as `as_batch` gives them.

    Raises:
        InputError: there are none, or one does not fit; the message names it.
    """
    found = [as_batch(program, batch, f"batch {index}") for index, batch in enumerate(batches)]
    if not found:
        raise InputError("there are no batches; give tuples with one tensor for each input of the model")
    return found


def as_batch(program: Program, batch: Any, where: str = "batch") -> Batch:
    """A batch as a tuple in the order of the program's inputs.

    Args:
        program: that is to take it.
        batch: a tuple with one tensor for each input, or a dict of tensors by the inputs' names.
        where: what messages call it.

    Raises:
        InputError: an input is missing or unknown, has another dtype or shape than the program takes, or holds NaN, infinity or numbers
            that no range of int8 can hold; the message names it.
    """
    names = program.inputs
    if isinstance(batch, Mapping):
        if set(batch) != set(names):
            raise InputError(f"{where} has inputs named {', '.join(map(str, batch))}; the model takes {', '.join(names)}")
        batch = [batch[name] for name in names]
    if not isinstance(batch, tuple | list):
        raise InputError(NO_TUPLE.format(type(batch).__name__))
    if len(batch) != len(names):
        raise InputError(f"{where} holds {len(batch)} inputs; the model takes {len(names)}: {', '.join(names)}")
    for name, tensor, expected in zip(names, batch, _values(program), strict=True):
        _check(tensor, expected, f"{where}, input {name}")
    return tuple(batch)


def read_batches(path: str | Path, program: Program) -> tuple[Batch, ...]:
    """Reads batches from an `.npz`: arrays named like the program's inputs, samples along the first axis.

    Raises:
        InputError: no such file, no `.npz`, too large, missing or unknown arrays, a wrong dtype or shape, NaN; the message names the array.
    """
    return batches_of(path, read_arrays(path), program)


def batches_of(path: str | Path, arrays: Mapping[str, np.ndarray], program: Program) -> tuple[Batch, ...]:
    """Batches of arrays by the names of the program's inputs, as `read_batches` gives them; `path` is what messages call them."""
    names = program.inputs
    if set(arrays) != set(names):
        found = [name[:50] for name in sorted(arrays)]
        raise InputError(f"{path} holds arrays {found}; the model's inputs are {list(names)}. Save with np.savez(path, {names[0]}=...)")
    values = _values(program)
    tensors = [_tensor(path, name, arrays[name], value) for name, value in zip(names, values, strict=True)]
    if len({len(tensor) for tensor in tensors}) > 1:
        raise InputError(f"{path}: the arrays hold {[len(tensor) for tensor in tensors]} samples; every input needs the same number")
    dynamic = has_dynamic_batch(program)
    size = BATCH if dynamic else len(program.golden.inputs[0])
    count = len(tensors[0]) if dynamic else len(tensors[0]) // size * size
    if count == 0:
        raise InputError(f"{path} holds {len(tensors[0])} samples; the model takes batches of {size}")
    batches = (tuple(tensor[start : start + size] for tensor in tensors) for start in range(0, count, size))
    return tuple(as_batch(program, batch, f"{path}: batch {index}") for index, batch in enumerate(batches))


def has_dynamic_batch(program: Program) -> bool:
    """True if the first dimension of the first input may have any size."""
    return _sizes(_values(program)[0])[:1] == [None]


def _check(found: Any, expected: Tensor, what: str) -> None:
    if not isinstance(found, Tensor):
        raise InputError(f"{what} is a {type(found).__name__}; expected a tensor")
    sizes = _sizes(expected)
    if found.dtype != expected.dtype or not _fits(found.shape, sizes):
        raise InputError(f"{what} is {found.dtype} {list(found.shape)}; expected {expected.dtype} [{_shown(sizes)}]")
    if found.device.type != "cpu":
        raise InputError(f"{what} is on {found.device}; expected it on cpu")
    if not found.numel() or not found.is_floating_point():
        return
    largest = float(found.abs().max())
    if not largest < float("inf"):
        raise InputError(f"{what} holds NaN or infinity; clean the data first")
    if largest > MAX_VALUE:
        raise InputError(f"{what} holds {largest:.3g}; expected magnitudes up to {MAX_VALUE:g}, since one outlier takes all steps of int8")


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` by name.

    Raises:
        InputError: no such file, no `.npz`, too large, or it holds objects.
    """
    data = read_bytes(path, MAX_BYTES)
    try:
        archive = np.load(BytesIO(data), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is a single array; batches are an .npz with one array for each input")
        with archive:
            entries = archive.zip.infolist() if archive.zip else []
            size = sum(entry.file_size for entry in entries)
            if size > MAX_BYTES:
                raise InputError(f"{path} holds {size:,} bytes of arrays; expected at most {MAX_BYTES:,}")
            arrays = {name: archive[name] for name in archive.files}
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many classes; every one of them means that the file can't be read
        reason = first_line(error)
        if "allow_pickle" in reason:  # numpy's advice is to take the risk
            reason = "it holds Python objects, or is a file of another kind"
        raise InputError(f"{path} can't be read as an .npz of plain arrays: {reason}") from None
    if others := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise InputError(f"{path} can't be read as an .npz of plain arrays: {others[0]} is no array")
    return arrays


def _tensor(path: str | Path, name: str, array: np.ndarray, expected: Tensor) -> Tensor:
    sizes = [None, *_sizes(expected)[1:]]
    if not _fits(array.shape, sizes):
        raise InputError(f"{path}: {name} has shape {list(array.shape)}; the model takes [{_shown(sizes)}], samples first")
    kind = str(expected.dtype).removeprefix("torch.")
    if array.dtype.name != kind or not array.dtype.isnative:
        order = "" if array.dtype.isnative else ", the bytes of each number in the other order"
        raise InputError(f"{path}: {name} is {array.dtype.name}{order}; the model takes {kind}. Convert with .astype({kind!r})")
    return torch.from_numpy(np.array(array))


def _values(program: Program) -> list[Tensor]:
    """What the graph knows of each input: dtype and sizes."""
    values = {node.name: node.meta["val"] for node in program.exported.graph.nodes if node.op == "placeholder"}
    return [values[name] for name in program.inputs]


def _sizes(value: Tensor) -> list[int | None]:
    """The sizes of an input; None for a dynamic one."""
    return [size if isinstance(size, int) else None for size in value.shape]


def _fits(shape: Sequence[int], sizes: Sequence[int | None]) -> bool:
    return len(shape) == len(sizes) and all(size in (None, given) for size, given in zip(sizes, shape, strict=True))


def _shown(sizes: list[int | None]) -> str:
    return ", ".join("any" if size is None else str(size) for size in sizes)
