"""Calibration data from a file: `--calibrate data.npz`, one array for each input of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.program.capture import check_batches
from qn_deploy.program.program import Batch, Program

BATCH = 32  # samples run at once, where the model's batch is dynamic


def load_calibration(path: Path, program: Program) -> tuple[Batch, ...]:
    """Reads calibration batches from an `.npz`: arrays named like the model's inputs, samples along the first axis.

    Raises:
        InputError: no such file, no `.npz`, missing or unknown arrays, a wrong dtype or shape, NaN; the message names the array.
    """
    names = program.inputs
    arrays = _read(path)
    if set(arrays) != set(names):
        raise InputError(f"{path} holds arrays {sorted(arrays)}; the model's inputs are {names}. Save with np.savez(path, {names[0]}=...)")
    tensors = [_checked(path, name, arrays[name], program, index) for index, name in enumerate(names)]
    if len({len(tensor) for tensor in tensors}) > 1:
        raise InputError(f"{path}: the arrays hold {[len(tensor) for tensor in tensors]} samples; every input needs the same number")
    size = BATCH if _dynamic(program, 0)[0] else len(program.golden.inputs[0])
    count = len(tensors[0]) if _dynamic(program, 0)[0] else len(tensors[0]) // size * size
    if count == 0:
        raise InputError(f"{path} holds {len(tensors[0])} samples; the model takes batches of {size}")
    batches = tuple(tuple(tensor[start : start + size] for tensor in tensors) for start in range(0, count, size))
    check_batches(batches, program.golden.inputs, where=f"{path}:")
    return batches


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} is a single array; calibration data is an .npz with one array for each input")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the .npz with calibration data") from None
    except InputError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise many classes; every one of them means that the file can't be read
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} can't be read as an .npz of plain arrays: {reason}") from None
    if others := [name for name, value in arrays.items() if not isinstance(value, np.ndarray)]:
        raise InputError(f"{path} can't be read as an .npz of plain arrays: {others[0]} is no array")
    return arrays


def _checked(path: Path, name: str, array: np.ndarray, program: Program, index: int) -> Tensor:
    example = program.golden.inputs[index]
    expected = [None if dynamic else size for dynamic, size in zip(_dynamic(program, index), example.shape, strict=True)]
    fits = array.ndim == example.ndim and all(want in (None, got) for want, got in zip(expected[1:], array.shape[1:], strict=True))
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in (None, *expected[1:]))
        raise InputError(f"{path}: {name} has shape {list(array.shape)}; the model takes [{wanted}], samples first")
    kind = str(example.dtype).removeprefix("torch.")
    if array.dtype.name != kind:
        raise InputError(f"{path}: {name} is {array.dtype.name}; the model takes {kind}. Convert with .astype({kind!r})")
    return torch.from_numpy(np.array(array))


def _dynamic(program: Program, index: int) -> list[bool]:
    name = str(program.exported.graph_signature.user_inputs[index])
    node = next(node for node in program.exported.graph.nodes if node.name == name)
    return [not isinstance(size, int) for size in node.meta["val"].shape]
