"""A recipe for a program of which nothing is known: chosen by the operators that are there, by the block sizes of the paper."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.fx import Node

from qn_deploy.graph.operators import LINEAR, Kind, kind_of, weights_of
from qn_deploy.graph.sites import Weight, operator_name, weights
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table

_SMALL, _LARGE = 4, 8  # block sizes of layers that lose more, and less (paper, appendix 7.6)
_MOST = 25  # weights of a kernel that share one code
_aten = torch.ops.aten
_TOGETHER = (_aten.scaled_dot_product_attention.default, _aten.matmul.default, _aten.bmm.default, _aten.baddbmm.default)


def auto_recipe(program: Program) -> Recipe:
    """The recipe for a program by its operators.

    A convolution that reads an input of the program is int8. The weights of a kernel share a code, up to 25 of them. Convolutions with
    kernels of one weight go by 4, and so do linear layers, unless the program has attention or lookups: then those by 4 whose result meets
    another one in a product, as queries and keys do, and all others by 8, lookups too. What is left is int8.
    """
    found = weights(program.exported)
    inputs = {str(name) for name in program.exported.graph_signature.user_inputs}
    first = [weight for weight in found if _reads(weight, inputs)]
    rest = [weight for weight in found if weight not in first]
    rules = [Rule(Int8(), name=weight.name) for weight in first]
    for operator, kernel in sorted({(operator_name(weight.readers[0]), weight.kernel) for weight in rest if weight.kernel}):
        if (size := prod(kernel)) <= _MOST:
            rules.append(Rule(Table(size if size > 1 else _SMALL), kernel=kernel, operator=operator))
    words = any(kind_of(weight.readers[0]) is Kind.LOOKUP for weight in rest)
    meeting = [weight.name for weight in rest if weight.readers[0].target in LINEAR and _meets(weight.readers[0])]
    if words or meeting:
        rules += [Rule(Table(_SMALL), name=name) for name in meeting]
        rules += [Rule(Table(_LARGE), operator="linear"), Rule(Table(_LARGE), operator="embedding*")]
    else:
        rules.append(Rule(Table(_SMALL), operator="linear"))
    return Recipe((*rules, Rule(Int8())), title="auto")


def _reads(weight: Weight, inputs: set[str]) -> bool:
    """True if a convolution of real numbers meets an input of the program first."""
    reader = weight.readers[0]
    return weight.kernel is not None and any(node.name in inputs for node in _back(reader.args[0]))


def _back(node: object) -> list[Node]:
    """A value and those that it is moved from."""
    found = []
    while isinstance(node, Node):
        found.append(node)
        node = node.args[0] if kind_of(node) is Kind.SHAPE else None
    return found


def _meets(layer: Node) -> bool:
    """True if what a layer gives, moved, scaled or with something added, is a factor of a product of two computed values."""
    waiting, seen = [layer], {layer}
    while waiting:
        for user in waiting.pop().users:
            if user.target in _TOGETHER and not list(weights_of(user)):
                return True
            if user not in seen and kind_of(user) in (Kind.SHAPE, Kind.PRODUCT, Kind.ADDITION) and _of_one_tensor(user):
                seen.add(user)
                waiting.append(user)
    return False


def _of_one_tensor(node: Node) -> bool:
    return sum(isinstance(source.meta.get("val"), Tensor) for source in node.all_input_nodes) == 1  # others are sizes
