"""Signs of a weight's rows moved behind the layer that reads it: codes that rows share, and scales, which are positive, have none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qn_deploy.graph.constants import add_constant, constant, put_constant
from qn_deploy.graph.operators import Kind, kind_of, operator_of

_aten = torch.ops.aten


@torch.no_grad()
def move_signs(graph_module: GraphModule, signs: Mapping[str, Tensor]) -> None:
    """Multiplies rows of weights and their biases by signs, and what the layer gives by the same signs: it computes what it did.

    Args:
        graph_module: it is changed.
        signs: float32 [out] of 1 and -1, by the name of a weight that only linear layers and convolutions read, see `has_signs`.
    """
    graph = graph_module.graph
    new: dict[str, str] = {}
    for layer in [node for node in graph.nodes if has_signs(node)]:
        row, source = operator_of(layer), layer.args[1]
        if row is None or not isinstance(source, Node) or str(source.target) not in signs:
            continue
        sign = signs[str(source.target)]
        old_bias = layer.args[2] if len(layer.args) > 2 else None
        bias = constant(graph_module, old_bias)
        if bias is not None and isinstance(old_bias, Node):
            with graph.inserting_before(layer):
                layer.update_arg(2, add_constant(graph_module, str(old_bias.target), bias * sign, layer))
        with graph.inserting_after(layer):
            product = graph.call_function(_aten.mul.Tensor, (layer,))
        product.meta = dict(layer.meta)
        layer.replace_all_uses_with(product)
        shape = [1] * layer.meta["val"].ndim
        shape[-1 if row.kind is Kind.LINEAR else 1] = -1
        name = str(source.target)
        with graph.inserting_before(product):
            factor = add_constant(graph_module, new.setdefault(name, f"{name}_sign"), sign.reshape(shape))
        product.args = (layer, factor)
    for name, sign in signs.items():
        weight = graph_module.get_parameter(name)
        put_constant(graph_module, name, nn.Parameter(weight * sign.reshape(-1, *[1] * (weight.ndim - 1))))
    graph.eliminate_dead_code()
    graph_module.recompile()


def has_signs(layer: Node) -> bool:
    """True if each row of the layer's weight makes one channel of what it gives."""
    return kind_of(layer) in (Kind.LINEAR, Kind.CONVOLUTION)
