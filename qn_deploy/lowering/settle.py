"""Chooses output scales so that all runtimes compute the same, where they round each in its own way.

onnxruntime adds in float on x86 and in fixed point on ARM, XNNPACK in another fixed point; they multiply in three ways, and compute each
activation by other approximations (`rules.py`, `curves.py`). So for a few of the 256 x 256 pairs of inputs, or of the 256 inputs, they land
on different sides of a tie. One such input can be a frequent one, and its step then spreads through all layers behind it. Whether there is
one depends on the scales alone, so the scale of the output is enlarged by parts of 4096 until there is none: about one addition in four
needs it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Graph, Node

from qn_deploy.graph.operators import CURVES, PAIRS, Kind, of_kind
from qn_deploy.lowering.curves import function_of, is_certain
from qn_deploy.lowering.placement import RELUS
from qn_deploy.lowering.rules import ALL, Grid, PairRule, Rules

_decomposed = torch.ops.quantized_decomposed
_QUANTIZE, _DEQUANTIZE = _decomposed.quantize_per_tensor.default, _decomposed.dequantize_per_tensor.default
_ADDS, _MULS = of_kind(Kind.ADDITION), of_kind(Kind.PRODUCT)
_NUDGE = 1 + 2**-12
_TRIES = 64
_ROUNDS = 4  # operators that share a range can unsettle each other


def settle(graph: Graph) -> None:
    """Enlarges the output scale of each sum, product and activation of int8 tensors until every runtime gives the same for every input.

    One that can't be settled in 64 tries, or whose output is not quantized by one range, stays as it is.
    """
    for _ in range(_ROUNDS):
        widened = [_widen(graph, node) for node in graph.nodes]
        if not any(widened):
            return


def is_settled(node: Node) -> bool:
    """True for a sum, product or activation of int8 tensors for which every runtime gives the same steps."""
    out = range_behind(node)
    return out is not None and computes_int8(node) and _agree(node, _grid(out))


def computes_int8(node: Node) -> bool:
    """True for a sum, product or activation whose operands are all int8 tensors."""
    operands = node.args if node.target in PAIRS else node.args[:1] if node.target in CURVES else ()
    return bool(operands) and not node.kwargs and all(is_quantized(operand) for operand in operands)


def is_quantized(value: Any) -> bool:
    """True for a node that dequantizes an activation."""
    return getattr(value, "target", None) is _DEQUANTIZE


def range_behind(node: Node, joined: Collection[Any] = RELUS) -> tuple[float, int] | None:
    """Scale and zero point that quantize all that reads a node, or the activation of `joined` behind it; None if there is no such range."""
    users = list(node.users)
    if len(users) == 1 and users[0].target in joined:
        users = list(users[0].users)
    ranges = {user.args[1:3] for user in users if user.target is _QUANTIZE}
    return ranges.pop() if len(ranges) == 1 and all(user.target is _QUANTIZE for user in users) else None  # type: ignore[return-value]


def pair_rule(target: Any, rules: Rules) -> PairRule | None:
    """A runtime's rule for an operator of two int8 tensors; None for any other."""
    return rules.add if target in _ADDS else rules.multiply if target in _MULS else None


def _widen(graph: Graph, node: Node) -> bool:
    out = range_behind(node)
    if out is None or not computes_int8(node):
        return False
    grid = _grid(out)
    for times in range(_TRIES):
        wider = Grid(grid.scale * _NUDGE**times, grid.zero)
        if _agree(node, wider):
            if times:
                _replace(graph, out, wider.scale.item())
            return times > 0
    return False


def _agree(node: Any, out: Grid) -> bool:
    if node.target in CURVES:
        return is_certain(function_of(node.target, node.args), _grid(node.args[0].args[1:3]), out)
    a, b = (_grid(arg.args[1:3]) for arg in node.args)
    low = out.zero if any(user.target in RELUS for user in node.users) else -128
    steps = torch.arange(-128, 128, dtype=torch.int8)
    x, y = steps[:, None].expand(256, 256), steps[None, :].expand(256, 256)
    rules = [rule for rule in {pair_rule(node.target, rules) for rules in ALL} if rule]
    # Either operand may come first: onnxruntime exchanges them where it broadcasts one.
    first, *others = (steps.clamp(low, 127) for rule in rules for steps in (rule(x, y, a, b, out), rule(y, x, b, a, out)))
    return all(torch.equal(first, other) for other in others)


def _grid(scale_and_zero: Any) -> Grid:
    scale, zero = scale_and_zero
    return Grid(torch.tensor(scale, dtype=torch.float32), zero)


def _replace(graph: Graph, old: Any, scale: float) -> None:
    # The same range stands wherever the result is quantized, dequantized, or moved on by an operator that shares its range.
    for node in graph.nodes:
        if node.target in (_QUANTIZE, _DEQUANTIZE) and node.args[1:3] == old:
            node.args = (node.args[0], scale, *node.args[2:])
