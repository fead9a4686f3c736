"""Operators in the one form that both runtimes take, before activations are placed. No value changes."""

from __future__ import annotations

import torch
from torch.fx import Graph, Node

from qn_deploy.lowering.ranges import Ranges

_aten = torch.ops.aten
_HEIGHT_AND_WIDTH = [2, 3]


def rewrite(graph: Graph, ranges: Ranges) -> None:
    """Rewrites what has several forms; the new nodes have the ranges of the old ones.

    A mean over height and width becomes the pooling to one value; a clamp between two numbers hardtanh, one above zero relu.
    """
    for node in list(graph.nodes):
        if node.target is _aten.mean.dim and _is_global(node):
            _pool(graph, node, ranges)
        elif node.target is _aten.clamp.default:
            _name_clamp(node)


def _is_global(mean: Node) -> bool:
    x, dims = mean.args[:2]
    ndim = x.meta["val"].ndim  # type: ignore[union-attr]
    return ndim == 4 and not mean.kwargs and sorted(dim % ndim for dim in dims or ()) == _HEIGHT_AND_WIDTH  # type: ignore[union-attr, operator]


def _pool(graph: Graph, mean: Node, ranges: Ranges) -> None:
    keeps = len(mean.args) > 2 and mean.args[2]
    with graph.inserting_before(mean):
        pool = graph.call_function(_aten.adaptive_avg_pool2d.default, (mean.args[0], [1, 1]))
        pool.meta["val"] = mean.meta["val"] if keeps else mean.meta["val"][:, :, None, None]
        ranges.move(mean, pool)
        new = pool
        if not keeps:
            new = graph.call_function(_aten.squeeze.dims, (pool, _HEIGHT_AND_WIDTH))
            new.meta["val"] = mean.meta["val"]
            ranges.move(mean, new)
    mean.replace_all_uses_with(new)
    graph.erase_node(mean)


def _name_clamp(clamp: Node) -> None:
    low, high = (clamp.kwargs.get(name, dict(enumerate(clamp.args)).get(index)) for index, name in ((1, "min"), (2, "max")))
    if isinstance(low, int | float) and isinstance(high, int | float):
        clamp.target, clamp.args, clamp.kwargs = _aten.hardtanh.default, (clamp.args[0], low, high), {}
    elif low == 0 and high is None and clamp.meta["val"].is_floating_point():
        clamp.target, clamp.args, clamp.kwargs = _aten.relu.default, (clamp.args[0],), {}
