"""What a recipe makes of the weights of a program: which it compresses how, and which stay float, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from qn_deploy.errors import CompressionError
from qn_deploy.graph.lifted import constants
from qn_deploy.graph.sites import Weight, operator_name, weights
from qn_deploy.program.program import Program
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Table
from qn_deploy.recipe.rules import Site

_LARGE = 0.01  # of a model's bytes: a weight of more that stays float is told


@dataclass(frozen=True)
class Target:
    """A weight that a recipe compresses; its first reader's rule decides for all readers.

    Attributes:
        weight: where it stands.
        method: what it is to become.
        per_channel: False if it has one scale for all its rows.
    """

    weight: Weight
    method: Table | Int8 | Int4
    per_channel: bool

    @property
    def name(self) -> str:
        """The parameter's name."""
        return self.weight.name


def targets(program: Program, recipe: Recipe) -> tuple[list[Target], dict[str, str]]:
    """What the recipe compresses, in the order of the first readers, and the large tensors that it leaves float, with the reason.

    Raises:
        CompressionError: a weight is not float32; the message names it.
    """
    found, left = [], {}
    for weight in weights(program.exported):
        method = recipe.method_for(site_of(weight, program.classes))
        if isinstance(method, Float):
            continue
        if not weight.value.numel():
            left[weight.name] = f"float: its shape {list(weight.value.shape)} holds no values"
            continue
        if weight.others:
            left[weight.name] = f"float: {operator_name(weight.others[0])} reads it too, which knows no compressed weights"
            continue
        if weight.value.dtype != torch.float32:
            raise CompressionError(
                f"{weight.name}: a weight of {weight.value.dtype} {list(weight.value.shape)} can't be compressed, only float32 can; "
                "call model.float() before it is captured"
            )
        one_scale = recipe.per_tensor or any(operator.one_scale for operator in weight.operators)
        found.append(Target(weight, method, not one_scale))
    return found, {**_large_and_float(program, recipe, {target.name for target in found}), **left}


def site_of(weight: Weight, classes: Mapping[str, tuple[str, ...]]) -> Site:
    """What a recipe may ask of a weight."""
    first = weight.operators[0].module
    kinds = frozenset((first, *classes.get(weight.name, ())))
    return Site(weight.name, kinds, operator_name(weight.readers[0]), weight.kernel)


def _large_and_float(program: Program, recipe: Recipe, compressed: set[str]) -> dict[str, str]:
    """The float matrices over a hundredth of the model's bytes that no compressed form is asked for, or that have none."""
    held = constants(program.exported)
    whole = sum(value.nbytes for _, value in held.values())
    sites = {weight.name: site_of(weight, program.classes) for weight in weights(program.exported)}
    left = {}
    for node, (name, value) in held.items():
        if name in compressed or value.ndim < 2 or not value.is_floating_point() or value.nbytes <= _LARGE * whole or not node.users:
            continue
        if name not in sites:
            reader = next(iter(node.users))
            reads = "it is an output" if reader.op == "output" else f"{operator_name(reader)} reads it, which knows no compressed weights"
            left[name] = f"float: {reads}"
        elif any(rule.matches(sites[name]) for rule in recipe.rules):
            left[name] = "float: as the recipe says"
        else:
            left[name] = "float: no rule of the recipe matches it"
    return left
