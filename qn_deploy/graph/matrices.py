"""Products with a constant matrix become linear layers, so that a weight is found in one form only: [out, in], read by `aten.linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from qn_deploy.graph.constants import add_constant, constant

_aten = torch.ops.aten
_TURNS = (_aten.t.default, _aten.transpose.int, _aten.permute.default, _aten.numpy_T.default)


def make_linear(graph_module: GraphModule) -> None:
    """Rewrites x @ W, mm(x, W) and addmm(bias, x, W) with a constant W of two dimensions to linear(x, W transposed, bias).

    Where W is the transpose of a parameter, the layer reads that parameter, and so stays tied with what else does.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        found = _product(node)
        if found is None:
            continue
        x, matrix, bias = found
        with graph.inserting_before(node):
            weight = _turned(graph_module, matrix, node)
            if weight is None:
                continue
            value = constant(graph_module, bias)
            joined = value is not None and value.shape == weight.meta["val"].shape[:1]
            layer = graph.call_function(_aten.linear.default, (x, weight, bias) if joined else (x, weight))
            layer.meta = dict(node.meta)
            result = layer
            if bias is not None and not joined:
                result = graph.call_function(_aten.add.Tensor, (layer, bias))
                result.meta = dict(node.meta)
        node.replace_all_uses_with(result)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _product(node: Node) -> tuple[Any, Node, Any] | None:
    """(x, matrix, bias or None) of a product whose second factor has two dimensions."""
    if node.target in (_aten.mm.default, _aten.matmul.default):
        x, matrix, bias = *node.args, None
    elif node.target is _aten.addmm.default and not node.kwargs:
        bias, x, matrix = node.args
    else:
        return None
    fits = isinstance(matrix, Node) and matrix.meta["val"].ndim == 2 and isinstance(x, Node) and x.meta["val"].ndim >= 2
    return (x, matrix, bias) if fits else None  # type: ignore[return-value]


def _turned(graph_module: GraphModule, matrix: Node, reader: Node) -> Node | None:
    """A node that reads the transpose of a constant matrix; None if the matrix is computed."""
    if matrix.target in _TURNS and constant(graph_module, matrix.args[0]) is not None:
        source: Any = matrix.args[0]
        return source  # type: ignore[no-any-return]
    value = constant(graph_module, matrix)
    if value is None or not value.is_floating_point():
        return None
    return add_constant(graph_module, str(matrix.target), value.T, reader)
