"""Reading a written `.onnx` back: its weights, its dense twin, and what onnxruntime makes of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from math import prod

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnx.helper import get_attribute_value, tensor_dtype_to_np_dtype

from qn_deploy.errors import ExportError
from qn_deploy.exporting.exporter import NO_PARTS, TooLargeError
from qn_deploy.program.program import Batch

from .functions import DOMAIN, inlined
from .large import LIMIT, load_whole
from .library import build_library
from .names import DECODED


def run(data: bytes, batches: tuple[Batch, ...], optimized: bool = True, parts: Mapping[str, bytes] = NO_PARTS) -> tuple[Batch, ...]:
    """Runs a model on onnxruntime's CPU provider; tables that should stay in memory do, unless the graph is to run as it is written.

    x86 processors without VNNI saturate sums of u8 * s8 pairs; `x64quantprecision` makes them exact, as on ARM.
    """
    call = opened(data, parts, optimized)
    return tuple(call(batch) for batch in batches)


def opened(data: bytes, parts: Mapping[str, bytes] = NO_PARTS, optimized: bool = True, exact: bool = True) -> Callable[[Batch], Batch]:
    """A loaded model that runs batches on one thread; `exact=False` leaves out what only sums of processors without VNNI need."""
    options = session_options(optimized, parts, exact)
    if optimized and operators(data):
        options.register_custom_ops_library(str(build_library()))
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(batch: Batch) -> Batch:
        feeds = {name: tensor.detach().numpy() for name, tensor in zip(names, batch, strict=True)}
        return tuple(torch.from_numpy(array) for array in session.run(None, feeds))

    return call


def session_options(optimized: bool = True, parts: Mapping[str, bytes] = NO_PARTS, exact: bool = True) -> onnxruntime.SessionOptions:
    """The session options that verification runs with, external data in memory among them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    if exact:
        options.add_session_config_entry("session.x64quantprecision", "1")
    if parts:
        files = list(parts.values())
        options.add_external_initializers_from_files_in_memory(list(parts), files, [len(file) for file in files])
    return options


def operators(data: bytes) -> int:
    """How many nodes of a file run on our library where it is registered."""
    return sum(node.domain == DOMAIN for node in onnx.load_model_from_string(data).graph.node)


def weight_hashes(data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
    """The sha256 of each constant: a table's int8 values, row-major, and every other constant as it is stored."""
    model = inlined(load_whole(data, parts))
    constants = (numpy_helper.to_array(entry) for entry in model.graph.initializer)
    return {hashlib.sha256(values.tobytes()).hexdigest() for values in chain(constants, (table.values for table in _tables(model)))}


def table_hashes(data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
    """The sha256 of the int8 values of each weight that nodes of the file decode from a table."""
    return {hashlib.sha256(table.values.tobytes()).hexdigest() for table in _tables(inlined(load_whole(data, parts)))}


def dense(data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> bytes:
    """The same model with each table expanded, see `expanded`, as one file.

    Raises:
        TooLargeError: the dense weights do not fit into it.
    """
    model = expanded(data, parts)
    size = sum(len(entry.raw_data) for entry in model.graph.initializer)
    if size > LIMIT:
        raise TooLargeError(f"the dense weights take {size:,} bytes, more than one .onnx file can hold")
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def expanded(data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> onnx.ModelProto:
    """The same model with each table expanded to a plain int8 initializer, in the order in which the layer reads it."""
    model = inlined(load_whole(data, parts))
    graph = model.graph
    renamed: dict[str, str] = {}
    for table in _tables(model):
        readers = transposes(graph, table.name)
        graph.initializer.append(numpy_helper.from_array(table.values.T if readers else table.values, table.name))
        for node in (*table.nodes, *readers):
            graph.node.remove(node)
        renamed |= {reader.output[0]: table.name for reader in readers}
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    used = {name for node in graph.node for name in node.input}
    for entry in [entry for entry in graph.initializer if entry.name not in used]:
        graph.initializer.remove(entry)
    return model


def transposes(graph: onnx.GraphProto, weight: str) -> list[onnx.NodeProto]:
    """The nodes that transpose a weight, if nothing reads it as it is: those before the product of a dynamic layer."""
    readers = [node for node in graph.node if weight in node.input]
    return readers if all(node.op_type == "Transpose" for node in readers) else []


@dataclass(frozen=True)
class _Table:
    name: str  # of the decoded weight
    nodes: list[onnx.NodeProto]  # that decode it
    values: np.ndarray  # int8, of the weight's shape


def _tables(model: onnx.ModelProto) -> Iterator[_Table]:
    """The weights that nodes decode, each evaluated as ONNX defines these nodes when its turn comes: all together take much memory."""
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    for name, last in makers.items():
        if name.endswith(DECODED) and not last.input[0].endswith(DECODED):  # else a copy for another reader of it
            nodes: list[onnx.NodeProto] = []
            yield _Table(name, nodes, _evaluate(name, constants, makers, nodes))


def _evaluate(name: str, constants: dict[str, np.ndarray], makers: dict[str, onnx.NodeProto], nodes: list[onnx.NodeProto]) -> np.ndarray:
    if name in constants:
        return constants[name]
    node = makers.get(name)
    if node is None or node.op_type not in _OPERATORS:
        raise ExportError(f"{name} comes from {node.op_type if node else 'no constant'}, which decodes no table; the file was changed")
    inputs = [_evaluate(source, constants, makers, nodes) for source in node.input]
    nodes.append(node)
    return _OPERATORS[node.op_type](*inputs, **{entry.name: get_attribute_value(entry) for entry in node.attribute})


_OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "Cast": lambda values, to: values.astype(tensor_dtype_to_np_dtype(to)),
    "Add": np.add,
    "Clip": np.clip,
    "Gather": lambda data, indices: data[indices],
    "Reshape": lambda values, shape: values.reshape([size or values.shape[axis] for axis, size in enumerate(shape.tolist())]),
    "Constant": lambda value: numpy_helper.to_array(value),
    "Flatten": lambda values, axis: values.reshape(prod(values.shape[:axis]), -1),
    "Slice": lambda values, begin, end: values[tuple(map(slice, begin.tolist(), end.tolist()))],
    "Transpose": lambda values, perm: values.transpose(perm),
}
