"""A program that learns: its graph as a module, whose compressed weights are torch parametrizations.

The parameters behind a weight are then the centroids and the scale of a table (`parametrizations.weight.original0` and `original1`, and
`original2` for the centroids of a residual table), or the latent float values of an integer weight (`original`).
With int8 in the loop, the weight that the forward pass sees is bit for bit the one that the program stores.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize
from torch.nn.utils.parametrize import ParametrizationList

from qn_deploy.compression.parametrizations import IntegerWeight, TableWeight, on_grid
from qn_deploy.errors import CompressionError
from qn_deploy.graph import sites
from qn_deploy.graph.lifted import unlifted, with_constants
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import INT8_MAX, CompressedWeight, IntWeight, PQWeight

_SMALLEST_SCALE = 1e-20  # a fine-tuned scale never falls below: runtimes take positive scales only


def student_of(program: Program, hidden: Sequence[str] = ()) -> GraphModule:
    """The program as a module of its own, which takes its inputs and returns a tuple; all float parameters want gradients.

    Args:
        program: not changed.
        hidden: names of nodes whose values are returned too, after the outputs.
    """
    student = copy.deepcopy(unlifted(program.exported, hidden))
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    for name, weight in program.weights.items():
        attach_weight(student, name, weight)
    return student


def learnt(program: Program, student: nn.Module) -> Program:
    """The program with what its student has learnt: compressed weights, biases, norms and weights that stayed float.

    The student may be of a part of the program: what it does not hold stays.

    Raises:
        CompressionError: a weight is no longer finite; the message names it.
    """
    new = compressed_weights(student)
    carried = {**program.weights, **new}
    weights = {weight.name: carried[weight.name] for weight in sites.weights(program.exported) if weight.name in carried}
    plain = {name: parameter.detach().clone() for name, parameter in student.named_parameters() if name in program.exported.state_dict}
    values = plain | {name: weight.dequantize() for name, weight in new.items()}
    return replace(program, exported=with_constants(program.exported, values), weights=weights)


def attach_weight(model: nn.Module, name: str, weight: CompressedWeight, int8_in_loop: bool = True) -> None:
    """Makes a parameter a compressed weight that learns: a table by its centroids and scale, integers through their rounding.

    Raises:
        CompressionError: the parameter has a parametrization already, or another shape or dtype.
    """
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if parametrize.is_parametrized(module, leaf):
        raise CompressionError(f"{name} is compressed already")
    old = module.get_parameter(leaf)
    if tuple(old.shape) != weight.shape or old.dtype != torch.float32:
        raise CompressionError(f"{name}: {old.dtype} {list(old.shape)} can't hold float32 {list(weight.shape)}")
    if isinstance(weight, IntWeight):
        with torch.no_grad():
            old.copy_(weight.dequantize())
    kind = TableWeight(weight, int8_in_loop) if isinstance(weight, PQWeight) else IntegerWeight(weight)
    parametrize.register_parametrization(module, leaf, kind.to(old.device))


def compressed_weights(model: nn.Module) -> dict[str, CompressedWeight]:
    """The compressed weights that a model carries, by parameter name.

    Raises:
        CompressionError: a weight is no longer finite; the message names it.
    """
    found: dict[str, CompressedWeight] = {}
    for name, carried in _carried(model):
        try:
            kind = carried[0]
            assert isinstance(kind, TableWeight | IntegerWeight)
            found[name] = kind.compressed(*carried.parameters(recurse=False))
        except CompressionError as error:
            raise CompressionError(f"{name}: {error}") from None
    return found


@torch.no_grad()
def round_centroids(model: nn.Module) -> None:
    """Puts int8 into the loop: from here on the forward pass sees every table's centroids on their int8 grid, whose step is now fixed."""
    for _, table, (centroids, scale, *residual) in tables(model):
        if not table.int8_in_loop:
            books, step = on_grid([centroids, *residual], scale)
            for old, new in zip((centroids, *residual, scale), (*books, step), strict=True):
                old.copy_(new)
            table.int8_in_loop = True


@torch.no_grad()
def clamp_tables(model: nn.Module) -> None:
    """Puts scales, and centroids with int8 in the loop, back into their range; call it after each step of an optimizer."""
    for _, table, (centroids, scale, *residual) in tables(model):
        scale.clamp_(min=_SMALLEST_SCALE)
        if table.int8_in_loop:
            for book in (centroids, *residual):
                book.clamp_(-INT8_MAX, INT8_MAX)


def _carried(model: nn.Module) -> Iterator[tuple[str, ParametrizationList]]:
    """Each compressed weight: its name, and its parametrization."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for leaf, carried in module.get_submodule("parametrizations").named_children():
                if isinstance(carried, ParametrizationList) and isinstance(carried[0], TableWeight | IntegerWeight):
                    yield f"{path}.{leaf}".lstrip("."), carried


def tables(model: nn.Module) -> list[tuple[str, TableWeight, list[nn.Parameter]]]:
    """Each table: its weight's name, and its centroids, its scale and its residual centroids."""
    return [
        (name, kind, list(carried.parameters(recurse=False)))
        for name, carried in _carried(model)
        if isinstance(kind := carried[0], TableWeight)
    ]
