"""Layers whose weight stays a table: described for our kernels, and each given to XNNPACK as a delegate of its own.

A layer is a linear one, or a 1x1 convolution, which is one of each position.

Imported where a program is lowered, as it imports executorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from hashlib import sha256
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir.dialects._ops import ops
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx.passes.infra.partitioner import Partition

from .layer_blob import Kind, Layer

_Q, _aten = torch.ops.quantized_decomposed, torch.ops.aten
_CLAMPS = (_aten.relu.default, _aten.hardtanh.default)  # that XNNPACK joins with the layer before


_CONVOLUTIONS = (_aten.conv2d.default, _aten.convolution.default)
_EDGE = {ops.edge.aten.linear.default: "linear.default", ops.edge.aten.convolution.default: "convolution.default"}


class KeptLayers(XnnpackPartitioner):  # type: ignore[misc]
    """Gives each of some layers to XNNPACK by itself.

    Attributes:
        taken: names of their weights, of those that XNNPACK took.
    """

    def __init__(self, configs: list[Any], weights: Set[str]) -> None:
        super().__init__(configs)
        self._weights = weights
        self.taken: list[str] = []

    def generate_partitions(self, ep: ExportedProgram) -> list[Partition]:
        """A part for each layer."""
        self.taken = []
        parts: list[Partition] = []
        for node in [node for node in ep.graph.nodes if node.target in _EDGE]:
            config, weight = self.target_partitioner_configs[_EDGE[node.target]], _weight_of(node, ep)
            fits = weight in self._weights and config.check_constraints(node, ep)
            if fits and (nodes := config.get_partition(node, ep)):
                self.taken.append(weight)
                parts.append(Partition(id=len(parts), nodes=nodes))
        return parts


def describe(exported: ExportedProgram, weights: Set[str], convolutions: bool) -> dict[str, Layer]:
    """The layers with one of these int8 weights, by its name: those of which nothing else reads the weight, in one of two forms.

    Static: dequantized input, layer, perhaps a clamp, quantize. Dynamic: an input that is quantized row by row, linear layer.

    Args:
        exported: the graph.
        weights: names of int8 weights.
        convolutions: whether 1x1 convolutions are layers too.
    """
    found: dict[str, Layer] = {}
    for node in exported.graph.nodes:
        weight = _weight_of(node, exported) if _is_layer(node, convolutions) else ""
        if weight in weights:
            dequantize = node.args[1]
            alone = len(dequantize.users) == len(dequantize.args[0].users) == 1
            layer = _describe(node, weight, exported) if alone else None
            found |= {} if layer is None else {weight: layer}
    return found


def _is_layer(node: Any, convolutions: bool) -> bool:
    return node.target is _aten.linear.default or (convolutions and node.target in _CONVOLUTIONS and _is_product(node))


def _is_product(convolution: Any) -> bool:
    """True for a 1x1 kernel that is put down at each position, in one group. One of a line XNNPACK takes in larger parts only."""
    given = dict(zip((each.name for each in convolution.target._schema.arguments), convolution.args, strict=False)) | convolution.kwargs
    usual = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "transposed": False}
    each = {name: given.get(name, value) for name, value in usual.items()}
    plain = all(set(found if isinstance(found, list | tuple) else (found,)) == {usual[name]} for name, found in each.items())
    return plain and tuple(convolution.args[1].meta["val"].shape[2:]) == (1, 1)


def separate_inputs(exported: ExportedProgram, weights: Set[str]) -> None:
    """Gives each layer of these weights a quantized input of its own: a node is in one delegate only."""
    for layer in [node for node in exported.graph.nodes if _is_layer(node, convolutions=True)]:
        source = layer.args[0]
        if len(source.users) > 1 and _weight_of(layer, exported) in weights:
            layer.replace_input_with(source, _copied(source, layer))


def _copied(dequantize: Any, reader: Any) -> Any:
    """A copy of a dequantize before its reader: by itself, or of all that quantizes row by row."""
    chain = [dequantize]
    if dequantize.target is _Q.dequantize_per_token.default:
        quantize, scale, zero = dequantize.args[:3]
        chain = [scale.args[0], scale, zero, quantize, dequantize]
    copies: dict[Any, Any] = {}
    with reader.graph.inserting_before(reader):
        for node in chain:
            copies[node] = reader.graph.node_copy(node, lambda each: copies.get(each, each))
    return copies[dequantize]


def _weight_of(layer: Any, ep: ExportedProgram) -> str:
    """The name of the int8 weight; empty where it is none with a scale for each row."""
    dequantize = layer.args[1]
    if dequantize.target not in (ops.edge.quantized_decomposed.dequantize_per_channel.default, _Q.dequantize_per_channel.default):
        return ""
    return str(ep.graph_signature.inputs_to_buffers.get(dequantize.args[0].name, ""))


def _describe(node: Any, name: str, exported: ExportedProgram) -> Layer | None:
    source, dequantize, *rest = node.args
    bias = _constant(rest[0], exported) if rest and rest[0] is not None else None
    weight, scale = (_constant(node, exported) for node in dequantize.args[:2])
    keys = _digest(weight), f"scale_{_digest(scale)}"
    is_convolution = node.target is not _aten.linear.default
    if source.target is _Q.dequantize_per_token.default and not is_convolution:
        return Layer(name, Kind.DYNAMIC, *keys, _digest(bias))
    clamp = _only_user(node)
    quantize = _only_user(clamp) if clamp is not None and clamp.target in _CLAMPS else clamp
    if source.target is not _Q.dequantize_per_tensor.default or quantize is None or quantize.target is not _Q.quantize_per_tensor.default:
        return None
    x, y, (low, high) = source.args[1:3], quantize.args[1:3], quantize.args[3:5]
    if clamp is not quantize:
        ends = torch.tensor((0.0, torch.inf) if clamp.target is _aten.relu.default else (*clamp.args[1:], -1.0, 1.0)[:2])
        low, high = ((ends / torch.tensor(y[0])).round() + y[1]).clamp(low, high).int().tolist()
    steps = None if bias is None else (bias / (torch.tensor(x[0]) * scale)).round().to(torch.int32)
    kind = Kind.CONVOLUTION if is_convolution else Kind.STATIC
    return Layer(name, kind, *keys, _digest(steps), x, y, (low, high))


def _only_user(node: Any) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _constant(node: Any, exported: ExportedProgram) -> Tensor:
    signature = exported.graph_signature
    constants: Mapping[str, Any] = {**exported.state_dict, **exported.constants}
    value: Tensor = constants[{**signature.inputs_to_parameters, **signature.inputs_to_buffers}[node.name]].detach()
    return value


def _digest(value: Tensor | None) -> str:
    return "" if value is None else sha256(value.contiguous().numpy().tobytes()).hexdigest()
