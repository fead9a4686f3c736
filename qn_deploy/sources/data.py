"""Data for calibration and tuning: an `.npz`, a folder of images, or a function that yields batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.program.batches import BATCH, as_batches, batches_of, read_arrays
from qn_deploy.program.program import Batch, Program
from qn_deploy.sources.code import call, is_name, told
from qn_deploy.sources.images import Preprocess, read_images

MOST = 1_024  # batches taken from a function, which may yield without end
SEED = 0  # of the order of samples
CALIBRATION = 512  # samples that calibration takes of the data: more tell nothing new
EXAMPLES = 2  # samples that become the golden inputs of a model; they are stored in model.pt


@dataclass(frozen=True)
class Data:
    """What was read, before it is known which program takes it.

    Attributes:
        where: what messages call it.
        arrays: samples along the first axis, by the name of an input.
        batches: of a function, tuples or dicts; where there are any, `arrays` is empty.
        images: samples for a model of one input, whatever its name.
    """

    where: str
    arrays: Mapping[str, np.ndarray]
    batches: tuple[Any, ...] = ()
    images: Tensor | None = None

    def examples(self, count: int = EXAMPLES) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """The first samples: by the names of the inputs, or by position where there are no names."""
        if self.images is not None:
            return (self.images[:count],)
        if self.batches:
            first = self.batches[0]
            if isinstance(first, Mapping):
                return {str(name): _first(tensor, count) for name, tensor in first.items()}
            return tuple(_first(tensor, count) for tensor in first)
        return {name: torch.from_numpy(np.array(array[:count])) for name, array in self.arrays.items()}

    def for_program(self, program: Program, most: int | None = None) -> tuple[Batch, ...]:
        """Batches of a program's inputs, in a random order that is the same each time, since files are often sorted by label.

        Args:
            program: that is to take them.
            most: how many samples are wanted at most; None for all.

        Raises:
            InputError: it does not fit the program's inputs; the message names the input.
        """
        if self.batches:
            try:
                found = as_batches(program, self.batches)
            except InputError as error:
                raise InputError(f"{self.where}: {error}") from None
            size = max(len(tensor) if tensor.ndim else 1 for tensor in found[0])
            return tuple(found if most is None else found[: max(1, most // size)])
        arrays = self.arrays
        if self.images is not None:
            if len(program.inputs) != 1:
                raise InputError(
                    f"{self.where} holds images, one input; the model takes {len(program.inputs)}: {', '.join(program.inputs)}"
                )
            arrays = {program.inputs[0]: self.images.numpy()}
        in_order = batches_of(self.where, arrays, program)  # so that what is said of a batch is said of the file
        count = sum(len(batch[0]) for batch in in_order)
        chosen = np.random.default_rng(SEED).permutation(count)[:most]
        return batches_of(self.where, {name: array[chosen] for name, array in arrays.items()}, program)


def read_data(text: str, preprocess: str | None = None) -> Data:
    """Reads calibration or tuning data.

    Args:
        text: the path of an `.npz` or of a folder of images, or `package.module:function`, which yields batches: each a tuple with one
            tensor for each input, a dict by the inputs' names, or a tensor for a model of one input.
        preprocess: of images, see `Preprocess.parse`.

    Raises:
        InputError: it can't be read; the message says why.
    """
    path = Path(text)
    if preprocess is not None and not path.is_dir():
        raise InputError(f"--preprocess is for a folder of images; {text} is none")
    if path.is_dir():
        return Data(text, {}, images=read_images(path, Preprocess.parse(preprocess or "")))
    if is_name(text) and not path.exists():
        return Data(text, {}, _called(text))
    arrays = read_arrays(path)
    if not arrays:
        raise InputError(f"{path} holds no arrays; save one for each input: np.savez({path.name!r}, image=...)")
    if scalars := [name for name, array in arrays.items() if not array.ndim or not len(array)]:
        raise InputError(f"{path}: {scalars[0]} holds no samples; expected them along the first axis")
    return Data(text, arrays)


def _called(text: str) -> tuple[Any, ...]:
    found = call(text)
    if not isinstance(found, Iterable) or isinstance(found, str | bytes | Tensor | Mapping):
        raise InputError(f"{text} gives a {type(found).__name__}; expected a list or generator of batches, tuples of tensors")
    with told(f"taking batches from {text}"):
        batches = tuple((batch,) if isinstance(batch, Tensor) else batch for batch in islice(found, MOST))
    if not batches:
        raise InputError(f"{text} yields no batches; expected tuples with one tensor for each input")
    for index, batch in enumerate(batches):
        entries = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else (batch,)
        if strange := [type(entry).__name__ for entry in entries if not isinstance(entry, Tensor)]:
            raise InputError(f"{text}: batch {index} holds a {strange[0]}; expected tensors, one for each input")
    return batches


def _first(tensor: Tensor, count: int) -> Tensor:
    return tensor[: min(count, BATCH)] if tensor.ndim else tensor
