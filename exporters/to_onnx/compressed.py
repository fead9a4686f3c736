"""Layers whose tables stay tables in memory: each becomes one node, which our library computes with the codes as they are.

A layer is taken where its whole pattern is there, from the codes to the quantized output (static), or to the float output (dynamic); what
shares its table with another reader stays as it is. See `functions.py` for the node and its meaning without the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from qn_deploy.weights.compressed import PQWeight

from ..kernels.packing import SMALL, tiled
from .functions import DOMAIN, DYNAMIC, INPUTS, OPSET, STATIC, STATIC_CONV, STATIC_MATMUL, function
from .names import DECODED

_STATIC = {"Gemm": STATIC, "MatMul": STATIC_MATMUL, "Conv": STATIC_CONV}
_IR_VERSION = 10  # the first with uint4


@dataclass(frozen=True)
class _Layer:
    operator: str
    nodes: list[onnx.NodeProto]  # that the new node replaces; the last one makes the layer's output
    inputs: dict[str, str]  # names of values by the function's own names


def keep_tables(model: onnx.ModelProto, tables: Mapping[str, PQWeight]) -> tuple[str, ...]:
    """Replaces the nodes of each layer with one of `tables` by the node of our library; changes `model`.

    Args:
        model: a written graph, its weights being named as `passes.insert_tables` names them.
        tables: by the name of the layer's parameter.

    Returns:
        Names of the parameters whose layers were replaced.
    """
    graph = _Graph(model.graph)
    kept = {name: layer for name in tables if (layer := _layer(graph, name)) is not None}
    for name, layer in kept.items():
        _replace(graph, name, tables[name], layer)
    if kept:
        for operator in sorted({layer.operator for layer in kept.values()}):
            model.functions.append(function(operator))
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        (opset,) = (entry for entry in model.opset_import if entry.domain == "")
        opset.version, model.ir_version = max(opset.version, OPSET), max(model.ir_version, _IR_VERSION)
        _remove_unused(model.graph)
    return tuple(kept)


class _Graph:
    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self.makers = {name: node for node in proto.node for name in node.output}
        self.constants = {entry.name for entry in proto.initializer}
        self.outputs = {entry.name for entry in proto.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def maker(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The node that makes a value, if it is this operator."""
        node = self.makers.get(name)
        return node if node is not None and node.op_type == operator else None

    def reader(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The one node that reads a value, if it is this operator."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == operator and name not in self.outputs else None

    def constant(self, name: str, array: np.ndarray) -> str:
        """The initializer `name`, made of `array` unless it is there."""
        if name not in self.constants:
            self.proto.initializer.append(numpy_helper.from_array(array, name))
            self.constants.add(name)
        return name


def _layer(graph: _Graph, name: str) -> _Layer | None:
    weight = name + DECODED
    decode = _decoding(graph, weight, name)
    if decode is None:
        return None
    return _static_layer(graph, weight, decode) or _dynamic_layer(graph, weight, decode)


def _decoding(graph: _Graph, weight: str, name: str) -> list[onnx.NodeProto] | None:
    """The nodes that decode a weight, if nothing else reads the codes."""
    nodes, value = [], weight
    while (node := graph.makers.get(value)) is not None:
        nodes.append(node)
        value = node.input[1 if node.op_type == "Gather" else 0]
    return nodes if value == f"{name}/codes" and graph.reader(value, "Cast") is not None else None


def _static_layer(graph: _Graph, weight: str, decode: list[onnx.NodeProto]) -> _Layer | None:
    values = graph.reader(weight, "DequantizeLinear")
    if values is None or len(values.input) < 3:
        return None
    nodes = [*decode, values]
    if (turned := graph.reader(values.output[0], "Transpose")) is not None:
        nodes.append(turned)
    float_weight = nodes[-1].output[0]
    layer = next((node for operator in _STATIC if (node := graph.reader(float_weight, operator)) is not None), None)
    source = None if layer is None or layer.input[1] != float_weight else graph.maker(layer.input[0], "DequantizeLinear")
    quantize = None if layer is None else graph.reader(layer.output[0], "QuantizeLinear")
    if layer is None or source is None or quantize is None or not _is_plain(layer, turned):
        return None
    bias = layer.input[2] if len(layer.input) > 2 else ""
    if bias and bias not in graph.constants:
        return None
    inputs = {
        "x": source.input[0],
        "x_scale": source.input[1],
        "x_zero": source.input[2],
        "w_scale": values.input[1],
        "w_zero": values.input[2],
        "bias": bias,
        "y_scale": quantize.input[1],
        "y_zero": quantize.input[2],
    }
    return _Layer(_STATIC[layer.op_type], [*nodes, layer, quantize], inputs)


def _is_plain(layer: onnx.NodeProto, turned: onnx.NodeProto | None) -> bool:
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in layer.attribute}
    if layer.op_type == "MatMul":
        return turned is not None and helper.get_attribute_value(turned.attribute[0]) == [1, 0]
    if turned is not None:
        return False
    if layer.op_type == "Gemm":
        return attributes == {"transB": 1}
    return attributes.get("kernel_shape", [1, 1]) == [1, 1] and not attributes.keys() - {"kernel_shape"}


def _dynamic_layer(graph: _Graph, weight: str, decode: list[onnx.NodeProto]) -> _Layer | None:
    columns = graph.reader(weight, "Transpose")
    sums = None if columns is None else graph.reader(columns.output[0], "MatMulInteger")
    floats = None if sums is None else graph.reader(sums.output[0], "Cast")
    product = None if floats is None else graph.reader(floats.output[0], "Mul")
    scale = None if product is None else graph.maker(product.input[1], "Mul")
    if columns is None or sums is None or floats is None or product is None or scale is None:
        return None
    nodes = [*decode, columns, sums, floats, scale, product]
    add = graph.reader(product.output[0], "Add")
    biases = [] if add is None else [entry for entry in add.input if entry in graph.constants]
    if add is not None and biases:
        nodes.append(add)
    inputs = {
        "x": sums.input[0],
        "x_scale": scale.input[0],
        "x_zero": sums.input[2],
        "w_scale": scale.input[1],
        "bias": biases[0] if biases else "",
    }
    return _Layer(DYNAMIC, nodes, inputs)


def _replace(graph: _Graph, name: str, table: PQWeight, layer: _Layer) -> None:
    out, columns = table.codes.shape
    books, size, d = table.centroids.shape
    for entry in [entry for entry in graph.proto.initializer if entry.name == f"{name}/codes"]:
        graph.proto.initializer.remove(entry)
        graph.constants.remove(entry.name)
    codes = table.codes.numpy()[:, None, None, :] if size > SMALL else tiled(table).astype(ml_dtypes.uint4)
    inputs = layer.inputs | {
        "codes": graph.constant(f"{name}/codes", codes),
        "centroids": graph.constant(f"{name}/centroids", table.centroids.reshape(books * size, d).numpy()),
        "offsets": graph.constant(f"offsets/{columns}x{books}x{size}", table.offsets.numpy()),
        "size": graph.constant(f"size/{out}x{columns}", np.array([out, columns], np.int64)),
    }
    inputs["bias"] = inputs["bias"] or graph.constant(f"bias/{out}", np.zeros(out, np.float32))
    last, title = layer.nodes[-1], next(node.name for node in layer.nodes if node.op_type in (*_STATIC, "MatMulInteger"))
    call = helper.make_node(layer.operator, [inputs[entry] for entry in INPUTS[layer.operator]], list(last.output), title, domain=DOMAIN)
    place = next(index for index, node in enumerate(graph.proto.node) if node is last or list(node.output) == list(last.output))
    graph.proto.node[place].CopyFrom(call)
    for node in layer.nodes[:-1]:
        graph.proto.node.remove(node)


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Removes nodes and initializers that nothing reads any more: offsets, shapes, dequantized inputs."""
    outputs = {entry.name for entry in graph.output}
    while True:
        used = outputs | {name for node in graph.node for name in node.input}
        unused = [node for node in graph.node if not used & set(node.output)]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    for entry in [entry for entry in graph.initializer if entry.name not in used]:
        graph.initializer.remove(entry)
