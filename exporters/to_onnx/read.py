"""Reading a written `.onnx` back: its weights, its dense twin, and what onnxruntime makes of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper

from qn_deploy.errors import ExportError
from qn_deploy.program.program import Batch

CODES_SUFFIX = "/codes"  # as passes.insert_tables names them


def run(data: bytes, batches: tuple[Batch, ...], optimized: bool = True, threads: int = 1) -> tuple[Batch, ...]:
    """Runs a model on onnxruntime's CPU provider.

    x86 processors without VNNI saturate sums of u8 * s8 pairs; `x64quantprecision` makes them exact, as on ARM.
    """
    session = onnxruntime.InferenceSession(data, session_options(optimized, threads), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    results = []
    for batch in batches:
        feeds = {name: tensor.detach().numpy() for name, tensor in zip(names, batch, strict=True)}
        results.append(tuple(torch.from_numpy(array) for array in session.run(None, feeds)))
    return tuple(results)


def session_options(optimized: bool = True, threads: int = 1) -> onnxruntime.SessionOptions:
    """The session options that verification runs with."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def weight_hashes(data: bytes) -> set[str]:
    """The sha256 of each constant: a table's int8 values, row-major, and every other constant as it is stored."""
    model = onnx.load_model_from_string(data)
    constants = [numpy_helper.to_array(entry) for entry in model.graph.initializer] + [table.values for table in _tables(model)]
    return {hashlib.sha256(values.tobytes()).hexdigest() for values in constants}


def dense(data: bytes) -> bytes:
    """The same model with each table expanded to a plain int8 initializer."""
    model = onnx.load_model_from_string(data)
    graph = model.graph
    for table in _tables(model):
        graph.initializer.append(numpy_helper.from_array(table.values, table.nodes[-1].output[0]))
        for node in table.nodes:
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for entry in [entry for entry in graph.initializer if entry.name not in used]:
        graph.initializer.remove(entry)
    result: bytes = model.SerializeToString(deterministic=True)
    return result


@dataclass(frozen=True)
class _Table:
    nodes: list[onnx.NodeProto]  # Cast, [Add,] Gather, Reshape
    values: np.ndarray  # int8, of the weight's shape


def _tables(model: onnx.ModelProto) -> list[_Table]:
    """Follows each codes initializer to the weight that it becomes, evaluating Cast, Add, Gather and Reshape as ONNX defines them."""
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for codes in [name for name in constants if name.endswith(CODES_SUFFIX)]:
        name, values = codes, constants[codes]
        nodes: list[onnx.NodeProto] = []
        while not nodes or nodes[-1].op_type != "Reshape":
            # An embedding that is tied with the layer gathers rows of the same codes; the chain that decodes all of them casts first.
            kinds = ("Add", "Gather", "Reshape") if nodes else ("Cast",)
            found_readers = readers.get(name, [])
            node = next((reader for reader in found_readers if reader.op_type in kinds), None)
            if node is None:
                said = ", ".join(reader.op_type for reader in found_readers) or "nothing"
                raise ExportError(f"{codes} is read by {said}, which decodes no table; the file was changed")
            if node.op_type == "Cast":
                values = values.astype(np.int32)
            elif node.op_type == "Add":
                values = values + constants[node.input[1]]
            elif node.op_type == "Gather":
                values = constants[node.input[0]][values]
            else:
                values = values.reshape(constants[node.input[1]])
            nodes.append(node)
            name = node.output[0]
        found.append(_Table(nodes, values))
    return found
