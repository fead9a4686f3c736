"""Chooses the output scales of additions so that all runtimes compute the same.

onnxruntime adds in float on x86 and in fixed point on ARM, XNNPACK in another fixed point (`rules.py`), and for a few of the 256 x 256
pairs of inputs they land on different sides of a tie. One such pair can be a frequent one, and its step then spreads through all layers
behind it. Whether there is such a pair depends on the scales alone, so the scale of the sum is enlarged by parts of 4096 until there is
none: about one addition in four needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from qn_deploy.program.rules import ALL, Grid

_decomposed = torch.ops.quantized_decomposed
_QUANTIZE, _DEQUANTIZE = _decomposed.quantize_per_tensor.default, _decomposed.dequantize_per_tensor.default
_ADDS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)
_RELUS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)
_NUDGE = 1 + 2**-12
_TRIES = 64


def settle_additions(graph: Graph) -> None:
    """Enlarges the output scale of each addition of two int8 tensors until every runtime gives the same for every pair of inputs.

    An addition that can't be settled in 64 tries, or whose output is not quantized, stays as it is.
    """
    for node in graph.nodes:
        quantize = _quantize_behind(node)
        if node.target not in _ADDS or quantize is None or not all(getattr(arg, "target", None) is _DEQUANTIZE for arg in node.args):
            continue
        a, b, out = _grid(node.args[0]), _grid(node.args[1]), _grid(quantize)
        low = out.zero if any(user.target in _RELUS for user in node.users) else -128
        for wider in (Grid(out.scale * _NUDGE**times, out.zero) for times in range(_TRIES)):
            if _agree(a, b, wider, low):
                _replace(graph, quantize.args[1:3], wider.scale.item())
                break


def _quantize_behind(node: Node) -> Node | None:
    users = list(node.users)
    if len(users) == 1 and users[0].target in _RELUS:
        users = list(users[0].users)
    return users[0] if len(users) == 1 and users[0].target is _QUANTIZE else None


def _grid(node: Any) -> Grid:
    scale, zero = node.args[1:3]
    return Grid(torch.tensor(scale, dtype=torch.float32), zero)


def _agree(a: Grid, b: Grid, out: Grid, low: int) -> bool:
    steps = torch.arange(-128, 128, dtype=torch.int8)
    pairs = steps[:, None].expand(256, 256), steps[None, :].expand(256, 256)
    first, *others = (rules.add(*pairs, a, b, out).clamp(low, 127) for rules in ALL)
    return all(torch.equal(first, other) for other in others)


def _replace(graph: Graph, old: Any, scale: float) -> None:
    # The same range stands wherever the sum is quantized, dequantized, or moved on by an operator that shares its range.
    for node in graph.nodes:
        if node.target in (_QUANTIZE, _DEQUANTIZE) and node.args[1:3] == old:
            node.args = (node.args[0], scale, *node.args[2:])
