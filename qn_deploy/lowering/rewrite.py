"""Operators in the one form that both runtimes take, before anything else is lowered. The outputs stay the same.

    mean over height and width           -> adaptive_avg_pool2d to one value, which runtimes compute in int8
    clamp between two numbers, from zero -> hardtanh, relu, which they join with the layer before
    embedding_bag of bags of one length  -> embedding, and a sum, mean or maximum over the bag
    pad of less than nothing             -> slice, and a pad of what is left
    attention with a mask                -> `masks.py`
    three dimensions                     -> two, `volumes.py`

A node that is rewritten keeps its name, and so its range.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qn_deploy.lowering.masks import write_out_attention
from qn_deploy.lowering.nodes import called
from qn_deploy.lowering.volumes import write_as_planes

_aten = torch.ops.aten
_HEIGHT_AND_WIDTH = [2, 3]
_BAGS = {0: _aten.sum.dim_IntList, 1: _aten.mean.dim, 2: _aten.amax.default}  # by embedding_bag's mode
_PADS = (_aten.pad.default, _aten.constant_pad_nd.default)


def rewrite(graph_module: GraphModule) -> None:
    """Rewrites what has several forms, or none that both runtimes take."""
    for node in list(graph_module.graph.nodes):
        if node.target is _aten.mean.dim and _is_global(node):
            _pool(graph_module, node)
        elif node.target is _aten.clamp.default:
            _name_clamp(node)
        elif node.target is _aten.embedding_bag.padding_idx:
            _look_up_bags(graph_module, node)
        elif node.target in _PADS and any(isinstance(amount, int) and amount < 0 for amount in node.args[1]):
            _slice(graph_module, node)
        elif node.target is _aten.scaled_dot_product_attention.default:
            write_out_attention(graph_module, node)
    write_as_planes(graph_module)


def _is_global(mean: Any) -> bool:
    ndim = mean.args[0].meta["val"].ndim
    return ndim == 4 and not mean.kwargs and sorted(dim % ndim for dim in mean.args[1] or ()) == _HEIGHT_AND_WIDTH


def _pool(graph_module: GraphModule, mean: Node) -> None:
    keeps = len(mean.args) > 2 and mean.args[2]
    mean.target, mean.args = _aten.adaptive_avg_pool2d.default, (mean.args[0], [1, 1])
    if not keeps:
        mean.meta["val"] = mean.meta["val"][:, :, None, None]
        with graph_module.graph.inserting_after(mean):
            flat = called(graph_module, _aten.squeeze.dims, mean, _HEIGHT_AND_WIDTH)
        mean.replace_all_uses_with(flat, delete_user_cb=lambda user: user is not flat)


def _name_clamp(clamp: Any) -> None:
    low, high = (clamp.kwargs.get(name, dict(enumerate(clamp.args)).get(index)) for index, name in ((1, "min"), (2, "max")))
    if isinstance(low, int | float) and isinstance(high, int | float):
        clamp.target, clamp.args, clamp.kwargs = _aten.hardtanh.default, (clamp.args[0], low, high), {}
    elif low == 0 and high is None and clamp.meta["val"].is_floating_point():
        clamp.target, clamp.args, clamp.kwargs = _aten.relu.default, (clamp.args[0],), {}


def _look_up_bags(graph_module: GraphModule, bag: Any) -> None:
    """Bags of one length, as nn.EmbeddingBag makes of a matrix of indices; others stay."""
    weight, flat, offsets, _, mode, _, sample_weights, last, padding = (*bag.args, False, 0, False, None, False, None)[:9]
    readers = [reader for reader in bag.users if reader.users]
    if flat.target not in (_aten.reshape.default, _aten.view.default) or any(reader.args[1] != 0 for reader in readers):
        return
    ids = flat.args[0]
    if sample_weights is not None or last or padding is not None or ids.meta["val"].ndim != 2:
        return
    if not _are_rows(graph_module, offsets, ids.meta["val"].shape):
        return
    for reader in list(bag.users):
        if reader in readers:
            reader.target, reader.args = _BAGS[mode], (bag, [1])
        else:
            graph_module.graph.erase_node(reader)
    bag.target, bag.args = _aten.embedding.default, (weight, ids)
    bag.meta["val"] = bag.target(weight.meta["val"], ids.meta["val"])


def _are_rows(graph_module: GraphModule, offsets: Node, shape: torch.Size) -> bool:
    """True if bags begin where the rows of a matrix of this shape do."""
    rows, length = shape
    if offsets.op == "get_attr":
        found = operator.attrgetter(str(offsets.target))(graph_module)
        return isinstance(rows, int) and torch.equal(found, torch.arange(rows) * length)
    return bool(offsets.target is _aten.arange.start_step and offsets.args[0] == 0 and offsets.args[2] == length)


def _slice(graph_module: GraphModule, pad: Any) -> None:
    amounts, x = list(pad.args[1]), pad.args[0]
    if not all(isinstance(amount, int) for amount in amounts):
        return
    ndim = x.meta["val"].ndim
    with graph_module.graph.inserting_before(pad):
        for index in range(0, len(amounts), 2):
            before, after = (min(amount, 0) for amount in amounts[index : index + 2])
            if before or after:
                end = after if after else 2**63 - 1
                x = called(graph_module, _aten.slice.Tensor, x, ndim - 1 - index // 2, -before, end)
    left = [max(amount, 0) for amount in amounts]
    if any(left):
        pad.args = (x, left, *pad.args[2:])
    else:
        pad.replace_all_uses_with(x)
        graph_module.graph.erase_node(pad)
