"""Each way that is known to lose a fusion, done to a good file: the check names the layer and the cause."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import helper

from qn_deploy.errors import ExportError
from qn_deploy.exporters.to_onnx import EXPORTER, passes
from qn_deploy.exporters.to_onnx.fusions import check_fusions
from qn_deploy.exporters.to_onnx.options import OnnxOptions
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program

Write = Callable[[str, str, Activations], Written]
Programs = Callable[[str], Program]
FORMS = [
    ("operators", Activations.STATIC),
    ("residual", Activations.STATIC),
    ("shared", Activations.STATIC),
    ("words", Activations.DYNAMIC),
]


def changed(data: bytes, change: Callable[[onnx.GraphProto], None]) -> bytes:
    model = onnx.load_model_from_string(data)
    change(model.graph)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def node_of(graph: onnx.GraphProto, operator: str, part: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == operator and any(part in name for name in (*node.input, node.name)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "activations"), FORMS, ids=[f"{name}-{activations.value}" for name, activations in FORMS])
def test_nothing_is_lost_of_what_we_write(write: Write, name: str, activations: Activations) -> None:
    findings = check_fusions(write(name, "onnx", activations).data)
    assert findings.lost == findings.float == ()


def test_float_activations_promise_no_fusion(write: Write) -> None:
    assert check_fusions(write("residual", "onnx", Activations.NONE).data).lost == ()


def test_trap_a_weight_without_a_zero_point(write: Write) -> None:
    def drop(graph: onnx.GraphProto) -> None:
        del node_of(graph, "DequantizeLinear", "classifier.weight/scale").input[2]

    (line,) = check_fusions(changed(write("residual", "onnx", Activations.STATIC).data, drop)).lost
    assert line == "classifier.weight stayed Gemm instead of QGemm: its weight is dequantized without a zero point"


def unquantize(graph: onnx.GraphProto, layer: str) -> None:
    """Takes away the quantize/dequantize pair behind a layer."""
    node = node_of(graph, "Conv", layer)
    quantize = next(entry for entry in graph.node if node.output[0] in entry.input)
    dequantize = next(entry for entry in graph.node if quantize.output[0] in entry.input)
    for reader in graph.node:
        for index, name in enumerate(reader.input):
            if name == dequantize.output[0]:
                reader.input[index] = node.output[0]
    graph.node.remove(quantize)
    graph.node.remove(dequantize)


def test_trap_a_convolution_without_a_quantized_output(write: Write) -> None:
    data = changed(write("residual", "onnx", Activations.STATIC).data, lambda graph: unquantize(graph, "second"))
    (line,) = check_fusions(data).lost
    assert line.startswith("second.weight stayed Conv instead of QLinearConv: its output is not quantized: Add reads it in float")


def test_trap_a_matrix_product_with_a_float_bias(write: Write) -> None:
    """MatMul and Add of a float bias in place of Gemm: two dimensions, no quantized output between them."""

    def split(graph: onnx.GraphProto) -> None:
        gemm = node_of(graph, "Gemm", "classifier")
        turn = helper.make_node("Transpose", [gemm.input[1]], ["turned"], perm=[1, 0])
        product = helper.make_node("MatMul", [gemm.input[0], "turned"], ["product"])
        add = helper.make_node("Add", ["product", gemm.input[2]], [gemm.output[0]])
        at = list(graph.node).index(gemm)
        graph.node.remove(gemm)
        for node in (add, product, turn):
            graph.node.insert(at, node)

    (line,) = check_fusions(changed(write("residual", "onnx", Activations.STATIC).data, split)).lost
    assert line.startswith("classifier.weight stayed MatMul instead of QLinearMatMul")
    assert line.endswith("its output is not quantized: Add reads it in float")


def test_trap_int8_activations_at_a_fork(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "unsigned_activations", lambda model, weights: None)
    with pytest.raises(ExportError, match=r"stayed Conv instead of QLinearConv: its input is int8; onnxruntime wants uint8"):
        write_file(EXPORTER, programs("residual"), Activations.STATIC)


@pytest.mark.slow
def test_a_lost_fusion_is_an_error_or_with_allow_unfused_a_remark(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "unsigned_activations", lambda model, weights: None)
    with pytest.raises(ExportError, match=r"--allow-unfused"):
        write_file(EXPORTER, programs("residual"), Activations.STATIC)
    written = write_file(EXPORTER, programs("residual"), Activations.STATIC, OnnxOptions(allow_unfused=True))
    assert any("stayed Conv instead of QLinearConv" in note for note in written.notes)
