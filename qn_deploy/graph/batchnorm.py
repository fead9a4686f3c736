"""BatchNorm folded into the layer before it, so that it ends in the scales of the compressed weight and leaves the codes alone."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qn_deploy.graph.constants import add_constant, constant, owner_of
from qn_deploy.graph.operators import LAYERS, Kind, operator_of

_aten = torch.ops.aten
_NORMS = (_aten._native_batch_norm_legit_no_training.default, _aten.batch_norm.default)


@torch.no_grad()
def fold_batchnorm(graph_module: GraphModule) -> None:
    """Folds each normalisation by running statistics into the layer before it; one that can't fold becomes a product and a sum.

    The operator decides, whatever class of module it came from. Slices between the layer and the norm (of a causal convolution's output)
    stay where they are. A layer whose weight is read elsewhere too, or with another norm, gets a weight of its own for this call.
    """
    shared: dict[Any, tuple[str, str]] = {}
    for norm in [node for node in graph_module.graph.nodes if node.target in _NORMS]:
        x, *rest = norm.args
        weight, bias, mean, variance = (constant(graph_module, argument) for argument in rest[:4])
        if mean is None or variance is None or (norm.target is _aten.batch_norm.default and rest[4]):
            continue  # statistics of the batch: no constant factor
        factor = torch.rsqrt(variance + (rest[5] if norm.target is _NORMS[0] else rest[6])) * (1.0 if weight is None else weight)
        beta = torch.zeros_like(mean) if bias is None else bias
        layer = _layer_before(x)
        if layer is not None and constant(graph_module, layer.args[1]) is not None:
            key = tuple(str(source.target) for source in (*layer.all_input_nodes, *norm.all_input_nodes) if source.op == "get_attr")
            if key in shared:  # the same layer and norm once more
                with graph_module.graph.inserting_before(layer):
                    layer.args = (layer.args[0], *(_read(graph_module, name) for name in shared[key]), *layer.args[3:])
            else:
                shared[key] = _fold(graph_module, layer, factor, mean, beta)
            result = x
        else:
            result = _affine(graph_module, norm, x, factor, -mean * factor + beta)
        outputs = [norm] if norm.target is _aten.batch_norm.default else [user for user in norm.users if user.args[1] == 0]
        for output in outputs:
            output.replace_all_uses_with(result, propagate_meta=False)
    graph_module.graph.eliminate_dead_code()


def _layer_before(value: Any) -> Node | None:
    """The layer whose output, but for slices, a value is, if nothing else reads it; its channels are in dimension 1."""
    while value.target is _aten.slice.Tensor and value.args[1] not in (1, 1 - value.meta["val"].ndim) and len(value.users) == 1:
        value = value.args[0]
    if value.target not in LAYERS or len(value.users) != 1:
        return None
    is_linear = value.target is _aten.linear.default
    return value if not is_linear or value.meta["val"].ndim == 2 else None


def _fold(graph_module: GraphModule, layer: Node, factor: Tensor, mean: Tensor, beta: Tensor) -> tuple[str, str]:
    """Gives the layer a new weight and bias; their names."""
    old_weight, old_bias = layer.args[1], layer.args[2] if len(layer.args) > 2 else None
    weight, bias = constant(graph_module, old_weight), constant(graph_module, old_bias)
    assert weight is not None and isinstance(old_weight, Node)
    name = str(old_weight.target)
    bias_name = str(old_bias.target) if isinstance(old_bias, Node) else f"{owner_of(name)}.bias".lstrip(".")
    value = (-mean if bias is None else bias - mean) * factor + beta
    with graph_module.graph.inserting_before(layer):
        new_weight = add_constant(graph_module, name, _scaled(weight, factor, layer), layer)
        new_bias = add_constant(graph_module, bias_name, value, layer)
    layer.args = (layer.args[0], new_weight, new_bias, *layer.args[3:])
    return str(new_weight.target), str(new_bias.target)


def _read(graph_module: GraphModule, name: str) -> Node:
    node = graph_module.graph.get_attr(name)
    node.meta["val"] = operator.attrgetter(name)(graph_module)
    return node


def _scaled(weight: Tensor, factor: Tensor, layer: Node) -> Tensor:
    """The weight times the factor of each of its output channels."""
    row: Any = operator_of(layer)
    if row.kind is not Kind.TRANSPOSED:
        return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    groups: Any = layer.args[6] if len(layer.args) > 6 else 1  # [in, out/groups, ...], the groups one after the other along in
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * factor.reshape(groups, 1, -1, *[1] * (split.ndim - 3))).reshape(weight.shape)


def _affine(graph_module: GraphModule, norm: Node, x: Node, factor: Tensor, offset: Tensor) -> Node:
    graph = graph_module.graph
    shape = (1, -1, *[1] * (x.meta["val"].ndim - 2))
    with graph.inserting_before(norm):
        owner = next((owner_of(str(source.target)) for source in norm.all_input_nodes if source.op == "get_attr"), norm.name)
        scale = add_constant(graph_module, f"{owner}.factor".lstrip("."), factor.reshape(shape))
        shift = add_constant(graph_module, f"{owner}.offset".lstrip("."), offset.reshape(shape))
        product = graph.call_function(_aten.mul.Tensor, (x, scale))
        total = graph.call_function(_aten.add.Tensor, (product, shift))
    for node in (product, total):
        node.meta = {**norm.meta, "val": x.meta["val"]}
    return total
