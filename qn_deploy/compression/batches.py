"""Batches of inputs as users give them, in the order of a program's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.program.program import Batch, Program

NO_TUPLE = "a batch is a {}; give tuples of input tensors, (x,) for a model of one input"


def in_order(program: Program, batches: Iterable[Any]) -> list[Batch]:
    """The batches as tuples in the order of the program's inputs.

    Args:
        program: whose inputs they are.
        batches: each a tuple with one tensor for each input, or a dict of tensors by the inputs' names.

    Raises:
        InputError: there are none, or one does not fit; the message names the batch, the input, what was found and what was expected.
    """
    found = [ordered(program, index, batch) for index, batch in enumerate(batches)]
    if not found:
        raise InputError("there are no batches; give tuples with one tensor for each input of the model")
    return found


def ordered(program: Program, index: int, batch: Any) -> Batch:
    """One batch in the order of the program's inputs.

    Raises:
        InputError: it does not fit; the message names the batch by its index.
    """
    names = program.inputs
    if isinstance(batch, Mapping):
        if set(batch) != set(names):
            raise InputError(f"batch {index} has inputs named {', '.join(map(str, batch))}; the model takes {', '.join(names)}")
        batch = [batch[name] for name in names]
    if not isinstance(batch, tuple | list):
        raise InputError(NO_TUPLE.format(type(batch).__name__))
    if len(batch) != len(names):
        raise InputError(f"batch {index} holds {len(batch)} inputs; the model takes {len(names)}: {', '.join(names)}")
    values = {node.name: node.meta["val"] for node in program.exported.graph.nodes if node.op == "placeholder"}
    for name, tensor in zip(names, batch, strict=True):
        _check(f"batch {index}, input {name}", tensor, values[name])
    return tuple(batch)


def _check(what: str, found: Any, expected: Tensor) -> None:
    if not isinstance(found, Tensor):
        raise InputError(f"{what} is a {type(found).__name__}; expected a tensor")
    sizes = [size if isinstance(size, int) else None for size in expected.shape]  # None: any
    fits = len(sizes) == found.ndim and all(size in (None, given) for size, given in zip(sizes, found.shape, strict=True))
    if found.dtype != expected.dtype or not fits:
        shape = ", ".join("any" if size is None else str(size) for size in sizes)
        raise InputError(f"{what} is {found.dtype} {list(found.shape)}; expected {expected.dtype} [{shape}]")
    if found.is_floating_point() and not torch.isfinite(found).all():
        raise InputError(f"{what} holds NaN or infinity; clean the data before calibrating with it")
