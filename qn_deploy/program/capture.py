"""From a module in memory to a Program: the tables are read off the module, the graph is captured with the weights baked in."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qn_deploy.compression.layers import bake, compressed_weights
from qn_deploy.errors import ExportError, InputError
from qn_deploy.program.program import Batch, Golden, Program
from qn_deploy.recipe import Recipe


def capture(
    model: nn.Module,
    example_inputs: Batch,
    dynamic_shapes: Any = None,
    calibration: Iterable[Batch] = (),
    reference: nn.Module | None = None,
    recipe: Recipe | None = None,
    left: dict[str, str] | None = None,
) -> Program:
    """Captures a compressed model as a Program.

    Args:
        model: the compressed module; it is not changed.
        example_inputs: one tensor for each positional input; they become the golden inputs.
        dynamic_shapes: as `torch.export.export` takes it.
        calibration: batches of inputs that static int8 activations are calibrated with.
        reference: the float model before compression, whose outputs become the golden ones; the model itself if None.
        recipe: what the weights were compressed by.
        left: weights that kept another form than the recipe asked for, with the reason.

    Raises:
        InputError: an example or calibration batch does not fit; the message says which.
        ExportError: torch.export can't capture the model.
    """
    example_inputs = tuple(example_inputs)
    batches = tuple(tuple(batch) for batch in calibration)
    check_batches(batches, example_inputs)
    weights = compressed_weights(model)
    plain = copy.deepcopy(model).eval()
    bake(plain)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*_flat_weights")  # an LSTM's list of its own parameters, not a state
            exported = torch.export.export(plain, example_inputs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:  # torch.export raises many classes; every one of them means that this model can't be captured
        raise ExportError(
            f"torch.export can't capture {type(model).__name__}: {_reason(str(error).strip() or type(error).__name__)}"
        ) from error
    _check_unchanged(exported, type(model).__name__)
    with torch.no_grad():
        outputs = (plain if reference is None else copy.deepcopy(reference).eval())(*example_inputs)
    return Program(exported, weights, Golden(example_inputs, as_tensors(outputs)), batches, recipe, dict(left or {}))


def _reason(message: str) -> str:
    """What torch.export found, and what to do."""
    if fixed := re.findall(r"You marked (.+) as dynamic but your code specialized it to be a constant \((\d+)\)", message):
        sizes = " and ".join(f"{name} = {size}" for name, size in fixed)
        return (
            f"dynamic_shapes has a dimension that the model fixes at the example's size, {sizes}; leave it out there, or change the model. "
            "(An LSTM, GRU or RNN takes sequences of the example's length only: pad them to it.)"
        )
    return (
        f"{message.splitlines()[0]}. Try torch.export.export(model.eval(), example_inputs) by itself; what it asks for there must change "
        "in the model"
    )


def _check_unchanged(exported: ExportedProgram, model: str) -> None:
    """Refuses a model that keeps something from one run for the next, or writes into its inputs: no exported file could."""
    with torch.no_grad():
        signature = exported.run_decompositions({}).graph_signature  # only a graph without in-place operators says what it changes
    changed = [*signature.buffers_to_mutate.values(), *(f"input {name}" for name in signature.user_inputs_to_mutate.values())]
    if changed:
        raise ExportError(
            f"{model}.forward changes {', '.join(changed)} in place; a program is the same in each run and keeps its inputs. "
            "Compute a new tensor instead, x = x + 1, or leave the update out in eval mode"
        )


def as_tensors(outputs: Any) -> Batch:
    """What a module returned, as a flat tuple of tensors.

    Raises:
        InputError: it returned something that is no tensor.
    """
    flat = torch.utils._pytree.tree_leaves(outputs)
    if not all(isinstance(leaf, Tensor) for leaf in flat):
        raise InputError(f"the model returns {[type(leaf).__name__ for leaf in flat]}; a program returns tensors only")
    return tuple(flat)


def check_batches(batches: Iterable[Batch], example_inputs: Batch, where: str = "calibration") -> None:
    """Checks batches against the example inputs: number of inputs, dtype, rank, and that every number is finite.

    Raises:
        InputError: naming the batch, the input, what was found and what was expected.
    """
    for index, batch in enumerate(batches):
        if len(batch) != len(example_inputs):
            raise InputError(f"{where} batch {index} holds {len(batch)} inputs; the model takes {len(example_inputs)}")
        for position, (found, expected) in enumerate(zip(batch, example_inputs, strict=True)):
            what = f"{where} batch {index}, input {position}"
            if found.dtype != expected.dtype or found.ndim != expected.ndim:
                raise InputError(
                    f"{what} is {found.dtype} {list(found.shape)}; expected {expected.dtype} shaped like {list(expected.shape)}"
                )
            if found.is_floating_point() and not torch.isfinite(found).all():
                raise InputError(f"{what} holds NaN or infinity; clean the data before calibrating with it")
