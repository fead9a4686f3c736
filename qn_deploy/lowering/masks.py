"""Attention with a mask, written out: what is masked has a finite bias, and a row that sees nothing gives zeros.

A softmax over a row of -inf is zeros in torch and NaN in onnxruntime, and neither runtime reshapes a mask of fewer dimensions. Here the
bias is -1e9 where something is masked: its weight is 0 all the same, and no value is infinite.
"""

from __future__ import annotations

import operator
from math import sqrt
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qn_deploy.lowering.nodes import called

_aten = torch.ops.aten
_MASKED = -1e9  # no score of attention comes near it, and exp of it is 0 in float32
_LEAST = torch.finfo(torch.float32).min


def write_out_attention(graph_module: GraphModule, node: Any) -> None:
    """Replaces attention that has a mask by its products, sum and softmax; other attention stays.

    softmax(query [..., L, E] @ key [..., S, E]^T * scale + bias) * seen @ value [..., S, V]

    Args:
        graph_module: it is changed.
        node: scaled_dot_product_attention; it becomes the last product, and keeps its name.
    """
    names = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    options = dict(zip(names, node.args[3:], strict=False)) | node.kwargs
    mask = options.get("attn_mask")
    if mask is None or options.get("enable_gqa"):
        return
    query, key, value = node.args[:3]
    scale = options.get("scale") or 1 / sqrt(query.meta["val"].shape[-1])
    with graph_module.graph.inserting_before(node):
        scores = called(graph_module, _aten.matmul.default, query, called(graph_module, _aten.transpose.int, key, -2, -1))
        scores = called(graph_module, _aten.mul.Tensor, scores, scale)
        bias, seen = _bias(graph_module, mask)
        weights = called(graph_module, _aten.softmax.int, called(graph_module, _aten.add.Tensor, scores, bias), -1)
        if seen is not None:
            weights = called(graph_module, _aten.mul.Tensor, weights, seen)
    node.target, node.args, node.kwargs = _aten.matmul.default, (weights, value), {}


def _bias(graph_module: GraphModule, mask: Node) -> tuple[Node, Node | None]:
    """What is added to the scores, and what the weights are multiplied by: 0 where something is masked; None if that is needless."""
    if mask.meta["val"].dtype is torch.bool:
        seen = called(graph_module, _aten._to_copy.default, mask, dtype=torch.float32)
        masked = called(graph_module, _aten.sub.Tensor, seen, 1.0)
        return called(graph_module, _aten.mul.Tensor, masked, -_MASKED), seen
    if mask.op == "get_attr" and operator.attrgetter(str(mask.target))(graph_module).min() > _MASKED:
        return mask, None  # a learned bias
    bounded = called(graph_module, _aten.clamp.default, mask, _MASKED)
    seen = called(graph_module, _aten.ge.Scalar, mask, _LEAST)
    return bounded, called(graph_module, _aten._to_copy.default, seen, dtype=torch.float32)
