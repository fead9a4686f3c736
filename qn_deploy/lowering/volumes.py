"""Operators of three dimensions written as such of two, which both runtimes have in int8. Weights keep their bytes, and so their tables.

    conv3d         -> the slices that one position sees, side by side as channels, and a conv2d of each of these planes
    max_pool3d     -> max_pool2d over height and width, then over depth
    avg_pool3d     -> the same with avg_pool2d
    mean over depth, height and width, adaptive_avg_pool3d to one value -> adaptive_avg_pool2d of depth and height as one dimension

The operator keeps its node, and so its range, and its weight [O, I, kd, kh, kw] lies in memory as [O, I * kd, kh, kw] does.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qn_deploy.graph.constants import put_constant
from qn_deploy.graph.operators import CLAMPS
from qn_deploy.lowering.nodes import called

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv3d.default, _aten.conv3d.padding)
_POOLS = {_aten.max_pool3d.default: _aten.max_pool2d.default, _aten.avg_pool3d.default: _aten.avg_pool2d.default}
_VOLUME = [2, 3, 4]


def write_as_planes(graph_module: GraphModule) -> None:
    """Rewrites what has a form of two dimensions; what has none stays."""
    for node in list(graph_module.graph.nodes):
        if node.target in _CONVOLUTIONS and _is_plain(node):
            _convolve(graph_module, node)
        elif node.target in _POOLS and node.args[0].meta["val"].ndim == 5:
            _pool(graph_module, node)
        elif node.target in (_aten.adaptive_avg_pool3d.default, _aten.mean.dim) and _is_global(node):
            _average(graph_module, node)


def _options(node: Any, count: int, defaults: tuple[Any, ...], first: int) -> list[Any]:
    """The arguments from `first` on, lists of one for each dimension as such of three."""
    given = [*node.args[first:], *defaults[max(len(node.args) - first, 0) :]]
    return [list(value) * (3 // len(value)) if isinstance(value, list | tuple) and value else value for value in given[:count]]


def _paddings(node: Any) -> list[int] | None:
    """What is added at both ends of depth, height and width; None if the ends differ."""
    _, padding, dilation, _ = _options(node, 4, ([1], [0], [1], 1), 3)
    if padding == "valid":
        return [0, 0, 0]
    if padding != "same":
        return list(padding)
    total = [each * (size - 1) for each, size in zip(dilation, _kernel(node.args[1]), strict=True)]
    return None if any(amount % 2 for amount in total) else [amount // 2 for amount in total]


def _kernel(weight: Node) -> list[int]:
    """Depth, height and width, which the weight keeps when its shape changes."""
    kernel: list[int] = weight.meta.setdefault("kernel", list(weight.meta["val"].shape[2:]))
    return kernel


def _is_plain(node: Any) -> bool:
    """True for a convolution of a batch by a constant weight, all of whose readers can be rewritten or were."""
    weight = node.args[1]
    readers = [reader for reader in weight.users if reader.target is _aten.conv2d.default or _is_symmetric(reader)]
    return weight.op == "get_attr" and len(readers) == len(weight.users)


def _is_symmetric(node: Any) -> bool:
    return node.target in _CONVOLUTIONS and node.args[0].meta["val"].ndim == 5 and _paddings(node) is not None


def _convolve(graph_module: GraphModule, node: Any) -> None:
    x, weight, *rest = node.args
    (stride, _, dilation, groups), padding = _options(node, 4, ([1], [0], [1], 1), 3), _paddings(node)
    assert padding is not None
    size = _kernel(weight)[0]
    if weight.meta["val"].ndim == 5:
        value = operator.attrgetter(str(weight.target))(graph_module).detach().flatten(1, 2)
        put_constant(graph_module, str(weight.target), torch.nn.Parameter(value, requires_grad=False))
        weight.meta["val"] = weight.meta["val"].flatten(1, 2)
    depth = x.meta["val"].shape[2] + 2 * padding[0]
    steps = (depth - dilation[0] * (size - 1) - 1) // stride[0] + 1
    _, channels, _, height, width = x.meta["val"].shape
    with graph_module.graph.inserting_before(node):
        x = called(graph_module, _aten.permute.default, x, [0, 2, 1, 3, 4])
        if padding[0]:
            x = called(graph_module, _aten.reshape.default, x, [-1, depth - 2 * padding[0], channels * height * width])
            x = called(graph_module, _aten.constant_pad_nd.default, x, [0, 0, padding[0], padding[0]])
        seen = []
        for begin in range(0, size * dilation[0], dilation[0]):
            part = called(graph_module, _aten.slice.Tensor, x, 1, begin, begin + (steps - 1) * stride[0] + 1, stride[0])
            seen.append(called(graph_module, _aten.reshape.default, part, [-1, channels, 1, height, width]))
        planes = called(graph_module, _aten.cat.default, seen, 2) if size > 1 else seen[0]
        planes = called(graph_module, _aten.reshape.default, planes, [-1, channels * size, height, width])
    node.target = _aten.conv2d.default
    node.args = (planes, weight, rest[0] if rest else None, stride[1:], padding[1:], dilation[1:], groups)
    last = node
    if len(node.users) == 1 and next(iter(node.users)).target in CLAMPS:  # which runtimes join with the convolution
        last = next(iter(node.users))
    _, out, _, new_height, new_width = last.meta["val"].shape
    for each in {node, last}:
        each.meta["val"] = each.meta["val"].transpose(1, 2).flatten(0, 1)
    _turn_back(graph_module, last, [-1, steps, out, new_height, new_width], [0, 2, 1, 3, 4])


def _pool(graph_module: GraphModule, node: Any) -> None:
    is_maximum = node.target is _aten.max_pool3d.default
    if is_maximum:
        kernel, stride, padding, dilation, ceil = _options(node, 5, (None, [], [0], [1], False), 1)
    else:
        kernel, stride, padding, ceil, counts_padding, divisor = _options(node, 6, (None, [], [0], False, True, None), 1)
        if ceil or divisor is not None or (any(padding) and not counts_padding):
            return
    stride = stride or kernel
    x, target = node.args[0], _POOLS[node.target]
    _, channels, depth, height, width = x.meta["val"].shape
    shape = node.meta["val"].shape

    def over(*axes: int) -> tuple[Any, ...]:
        picked = [[values[axis] if axis >= 0 else plain for axis in axes] for values, plain in ((kernel, 1), (stride, 1), (padding, 0))]
        return (*picked, [dilation[axis] if axis >= 0 else 1 for axis in axes], ceil) if is_maximum else tuple(picked)

    with graph_module.graph.inserting_before(node):
        planes = called(graph_module, _aten.reshape.default, x, [-1, channels * depth, height, width])
        planes = called(graph_module, target, planes, *over(1, 2))
        columns = called(graph_module, _aten.reshape.default, planes, [-1, channels, depth, shape[3] * shape[4]])
    node.target, node.args, node.kwargs = target, (columns, *over(0, -1)), {}
    node.meta["val"] = node.meta["val"].flatten(3, 4)
    _turn_back(graph_module, node, [-1, *shape[1:]])


def _is_global(node: Any) -> bool:
    if node.args[0].meta["val"].ndim != 5 or node.kwargs:
        return False
    if node.target is _aten.mean.dim:
        return sorted(axis % 5 for axis in node.args[1] or ()) == _VOLUME
    return list(node.args[1]) in ([1], [1, 1, 1])


def _average(graph_module: GraphModule, node: Any) -> None:
    x, shape = node.args[0], node.meta["val"].shape
    _, channels, depth, height, width = x.meta["val"].shape
    with graph_module.graph.inserting_before(node):
        plane = called(graph_module, _aten.reshape.default, x, [-1, channels, depth * height, width])
    node.target, node.args = _aten.adaptive_avg_pool2d.default, (plane, [1, 1])
    node.meta["val"] = node.meta["val"].reshape(-1, channels, 1, 1)
    _turn_back(graph_module, node, [-1, *shape[1:]])


def _turn_back(graph_module: GraphModule, node: Node, shape: list[Any], order: list[int] | None = None) -> None:
    """Gives what reads `node` the shape that it had before."""
    readers = set(node.users)
    with graph_module.graph.inserting_after(node):
        result = called(graph_module, _aten.reshape.default, node, shape)
    if order is not None:
        with graph_module.graph.inserting_after(result):
            result = called(graph_module, _aten.permute.default, result, order)
    node.replace_all_uses_with(result, delete_user_cb=lambda user: user in readers)
