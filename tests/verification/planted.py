"""What a fault does to a folder. Layers are found by the name of their bias, their grid by the quantize behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import helper
from torch import Tensor

from qn_deploy.exporters.to_executorch import pte
from qn_deploy.weights import table_blob
from tests.verification.folders import Folder, set_constant


def layer(graph: onnx.GraphProto, bias: str) -> onnx.NodeProto:
    return next(node for node in graph.node if any(name.startswith(bias) for name in node.input[2:]))


def quantize(graph: onnx.GraphProto, bias: str) -> onnx.NodeProto:
    """The QuantizeLinear behind a layer."""
    value = layer(graph, bias).output[0]
    while True:
        reader = next(node for node in graph.node if value in node.input)
        if reader.op_type == "QuantizeLinear":
            return reader
        value = reader.output[0]


def own_constant(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, change: Callable[[np.ndarray], Any]) -> None:
    """Changes a constant for one of its readers alone."""
    (entry,) = [entry for entry in graph.initializer if entry.name == node.input[index]]
    copy = onnx.TensorProto()
    copy.CopyFrom(entry)
    copy.name = f"planted/{len(graph.initializer)}"  # one that nothing has
    graph.initializer.append(copy)
    node.input[index] = copy.name
    set_constant(graph, copy.name, change)


def grid(bias: str, index: int, change: Callable[[np.ndarray], Any]) -> Callable[[Folder], None]:
    """Scale (1) or zero point (2) of the quantize behind a layer."""
    return lambda folder: folder.graph(lambda graph: own_constant(graph, quantize(graph, bias), index, change))


def constant(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Folder], None]:
    return lambda folder: folder.onnx(name, change)


def attribute(bias: str, name: str, value: Any) -> Callable[[Folder], None]:
    def change(graph: onnx.GraphProto) -> None:
        node = layer(graph, bias)
        for entry in [entry for entry in node.attribute if entry.name == name]:
            node.attribute.remove(entry)
        node.attribute.append(helper.make_attribute(name, value))

    return lambda folder: folder.graph(change)


def swap(array: np.ndarray, one: int, other: int, axis: int = 0) -> None:
    view = np.moveaxis(array, axis, 0)
    view[[one, other]] = view[[other, one]]


def swap_codes(codes: np.ndarray) -> None:
    flat = codes.reshape(-1)
    other = next(index for index, code in enumerate(flat) if code != flat[0])
    flat[[0, other]] = flat[[other, 0]]


def next_code(codes: np.ndarray) -> None:
    codes.flat[3] = (codes.flat[3] + 1) % 4


def output_by(op_type: str, output: int, **attributes: Any) -> Callable[[Folder], None]:
    """One more node before an output of the file."""

    def change(graph: onnx.GraphProto) -> None:
        name = graph.output[output].name
        maker = next(node for node in graph.node if name in node.output)
        maker.output[list(maker.output).index(name)] = "planted"
        inputs = ["planted"]
        if op_type == "Gather":
            order = np.roll(np.arange(16), 1)
            graph.initializer.append(onnx.numpy_helper.from_array(order, "planted/order"))
            inputs.append("planted/order")
        graph.node.append(helper.make_node(op_type, inputs, [name], **attributes))
        if op_type == "Cast":
            graph.output[output].type.tensor_type.elem_type = attributes["to"]

    return lambda folder: folder.graph(change)


def swap_outputs(graph: onnx.GraphProto) -> None:
    """The first two results under each other's names."""
    names = {graph.output[0].name: graph.output[1].name, graph.output[1].name: graph.output[0].name}
    for node in graph.node:
        for names_of in (node.input, node.output):
            for index, name in enumerate(names_of):
                names_of[index] = names.get(name, name)


def flip_best(graph: onnx.GraphProto) -> None:
    """The least instead of the largest."""
    next(node for node in graph.node if node.op_type == "ArgMax").op_type = "ArgMin"


def greater_or_equal(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Greater").op_type = "Less"


def drop_a_relu(graph: onnx.GraphProto) -> None:
    """The clamp of the stem: a lower zero point lets what lies below zero pass."""
    node = quantize(graph, "stem.bias")
    for reader in [node, *(other for other in graph.node if node.output[0] in other.input)]:
        own_constant(graph, reader, 2, lambda zero: zero.fill(100))


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Folder], None]:
    return lambda folder: folder.golden(change)


def swap_tensors(one: str, other: str) -> Callable[[Folder], None]:
    return tensors(lambda held: held.update({one: held[other], other: held[one]}))


def other_blob_codes(folder: Folder) -> None:
    """Two codes of a table in model.pte change places."""
    data = (folder.path / "model.pte").read_bytes()
    blob = max((blob for blob in pte.named_data(data).values() if table_blob.is_blob(blob)), key=len)
    folder.write("model.pte", data.replace(blob, with_other_codes(blob)))


def with_other_codes(blob: bytes) -> bytes:
    """The blob, of the same length, with two codes of its first row exchanged: they are used as often as before."""
    weight = table_blob.read(blob)
    codes = weight.codes.clone()
    (other,) = (codes[0] != codes[0, 0]).nonzero()[0].tolist()
    codes[0, [0, other]] = codes[0, [other, 0]]
    _, _, dtype, layout, _, further, *_ = table_blob.HEADER.unpack_from(blob)
    form = table_blob.Layout(layout), table_blob.DType(dtype), 1 + int.from_bytes(further, "little")
    changed = table_blob.pack(replace(weight, codes=codes), *form, coded=table_blob.is_coded(blob))
    assert len(changed) == len(blob) and table_blob.unpack(changed) != table_blob.unpack(blob)
    return changed


def other_bias_of_the_pte(folder: Folder) -> None:
    """A bias in model.pte: XNNPACK holds it as it is."""
    data = (folder.path / "model.pte").read_bytes()
    held = {name: part for name, part in pte.named_data(data).items() if len(part) == 40}  # the head's: ten values
    (bias,) = [part for name, part in held.items() if not name.startswith("scale_")]
    values = np.frombuffer(bias, np.int32) + 2_000
    folder.write("model.pte", data.replace(bias, values.astype(np.int32).tobytes()))


def other_companion(folder: Folder) -> None:
    name = "model.stock.qnz"
    data = bytearray((folder.path / name).read_bytes())
    data[-20] ^= 1
    (folder.path / name).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    folder.manifest(lambda held: held["files"]["model.pte"]["companions"][name].update(sha256=digest))
