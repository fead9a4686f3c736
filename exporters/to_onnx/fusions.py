"""Fusions are checked, not hoped for: what onnxruntime makes of each int8 layer when it loads the file.

A layer whose fusion is lost runs in float, 10 to 19 times slower, with the right results and without a word.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime
from onnx import numpy_helper

from qn_deploy.exporting.exporter import NO_PARTS

from .functions import DOMAIN, inlined
from .library import LIBRARY, build_library
from .modules import load, with_whole_names
from .names import SCALE
from .read import operators, session_options

# What each operator of the file becomes. MatMulIntegerToFloat is the int8 product without a quantized output.
_FUSED = {
    "Conv": ("QLinearConv",),
    "Gemm": ("QGemm",),
    "MatMul": ("QLinearMatMul", "MatMulIntegerToFloat"),
    "MatMulInteger": ("DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
}


@dataclass(frozen=True)
class Findings:
    """What became of the int8 layers of a file.

    Attributes:
        lost: a line for each layer that should have been fused and was not, with the cause.
        float: names of the layers that run in float because onnxruntime has no int8 kernel for their operator.
    """

    lost: tuple[str, ...]
    float: tuple[str, ...]


@dataclass(frozen=True)
class _Layer:
    name: str
    node: onnx.NodeProto  # the operator that computes the layer
    weight: onnx.NodeProto | None  # the DequantizeLinear of its weight; None if it computes with integers


def check_fusions(data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> Findings:
    """Loads a file in onnxruntime and matches each of its int8 layers with the operator that it should have become.

    Args:
        data: a file of this exporter.
        parts: its external data.
    """
    graph = _Graph(inlined(load(data)).graph)
    layers = list(_layers(graph))
    fused = _operators_by_scale(_optimized(data, parts)) if layers else Counter()
    lost, floats = [], []
    for layer in layers:
        kinds = _FUSED.get(layer.node.op_type)
        if kinds is None:
            floats.append(f"{layer.name} ({layer.node.op_type})")
            continue
        found = next((kind for kind in kinds if fused[layer.name, kind]), None)
        if found is None:
            lost.append(f"{layer.name} stayed {layer.node.op_type} instead of {' or '.join(kinds)}: {_cause(graph, layer)}")
        else:
            fused[layer.name, found] -= 1  # a layer that is called twice has to be fused twice
    if (kept := operators(data)) and (running := _kept(data, parts)) != kept:
        lost.append(f"{kept - running} of {kept} layers do not run on {LIBRARY}, though it is registered")
    return Findings(tuple(lost), tuple(floats))


class _Graph:
    """Who makes and who reads each value."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.constants = {entry.name: entry for entry in graph.initializer}
        self.makers = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def behind(self, node: onnx.NodeProto, skipped: tuple[str, ...]) -> list[onnx.NodeProto]:
        """The readers of a node's output, and instead of those in `skipped` their own readers."""
        found = []
        for reader in self.readers.get(node.output[0], ()):
            found += self.behind(reader, skipped) if reader.op_type in skipped else [reader]
        return found


def _layers(graph: _Graph) -> Iterator[_Layer]:
    for node in graph.nodes:
        name = next((source.removesuffix(SCALE) for source in node.input if source.endswith(SCALE)), None)
        if name is None:
            continue
        if node.op_type == "DequantizeLinear":
            yield from (_Layer(name, reader, node) for reader in graph.behind(node, skipped=("Transpose",)))
        elif node.op_type == "Mul":  # Mul(the input's scale, the weight's scale), then Mul(Cast(MatMulInteger), that)
            sums = [graph.makers[source] for product in graph.behind(node, ()) for source in product.input if source in graph.makers]
            casts = [graph.makers[entry.input[0]] for entry in sums if entry.op_type == "Cast"]
            yield from (_Layer(name, entry, None) for entry in casts if entry.op_type == "MatMulInteger")


def _kept(data: bytes, parts: Mapping[str, bytes]) -> int:
    """The layers that run on our library."""
    return sum(node.domain == DOMAIN for node in _optimized(data, parts, build_library()).graph.node)


def _optimized(data: bytes, parts: Mapping[str, bytes], library: Path | None = None) -> onnx.ModelProto:
    """The graph that onnxruntime really runs on this machine, as it comes or with our library."""
    with tempfile.TemporaryDirectory(prefix="qn-deploy-") as folder:
        options = session_options(parts=parts)
        if library is not None:
            options.register_custom_ops_library(str(library))
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        # The weights are not read back, and would not fit into a file of protobuf over 2 GB.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        # Scales of a few rows that happen to be equal would become one of another name.
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantSharing"])
        return with_whole_names(onnx.load(options.optimized_model_filepath, load_external_data=False))


def _operators_by_scale(model: onnx.ModelProto) -> Counter[tuple[str, str]]:
    """How often each (layer, operator) stands in an optimised graph."""
    return Counter((name.removesuffix(SCALE), node.op_type) for node in model.graph.node for name in node.input if name.endswith(SCALE))


def _cause(graph: _Graph, layer: _Layer) -> str:
    """Why onnxruntime can't have fused a layer, as far as the file tells: the traps that are known."""
    if layer.weight is None:
        return "its float sums do not end in Cast, Mul by both scales and Add of the bias"
    if len(layer.weight.input) < 3:
        return "its weight is dequantized without a zero point"
    source = graph.makers.get(layer.node.input[0])
    if source is None or source.op_type != "DequantizeLinear":
        return "its input is not quantized"
    if (zero := graph.constants.get(source.input[2])) is not None and numpy_helper.to_array(zero).dtype != "uint8":
        return "its input is int8; onnxruntime wants uint8 wherever a value has several readers"
    readers = graph.behind(layer.node, skipped=("Relu", "Clip"))
    floats = sorted({reader.op_type for reader in readers if reader.op_type != "QuantizeLinear"})
    if floats or not readers:
        return f"its output is not quantized: {', '.join(floats) or 'the output of the model'} reads it in float"
    return f"onnxruntime {onnxruntime.__version__} does not tell why"
