"""The int8 forms of linear layers that onnxruntime fuses: Gemm with an int32 bias, or MatMulInteger of a quantized input."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from qn_deploy.weights.compressed import CompressedWeight

from .graph import array_of, input_of, maker_of, only_reader, replace
from .tables import initializer


def flatten_linears(model: ir.Model, weights: Mapping[str, CompressedWeight]) -> None:
    """Writes each int8 linear layer with a bias as a Gemm of two dimensions, the values being reshaped while they are int8.

    onnxruntime would leave its bias in float: a second pass over the output, and sums that round another way than the int32 ones.
    """
    graph = model.graph
    for dequantize in [node for node in graph if node.op_type == "DequantizeLinear" and input_of(node, 0).name in weights]:
        for matmul in [reader for user, _ in dequantize.outputs[0].uses() for reader, _ in user.outputs[0].uses()]:
            layer = _biased_linear(matmul, dequantize)
            if layer is not None:
                _flatten(graph, dequantize, *layer)


def _biased_linear(matmul: ir.Node, weight: ir.Node) -> tuple[ir.Node, ir.Node, ir.Node] | None:
    """(DequantizeLinear of the input, Add of a bias, QuantizeLinear of the output) of a MatMul by the transposed weight, if it is one."""
    turned = maker_of(matmul, 1, "Transpose")
    if matmul.op_type != "MatMul" or turned is None or turned.inputs[0] is not weight.outputs[0]:
        return None
    source, add = maker_of(matmul, 0, "DequantizeLinear"), only_reader(matmul, "Add")
    if source is None or add is None or input_of(add, 1).const_value is None:
        return None
    quantize = only_reader(add, "QuantizeLinear")
    return None if quantize is None else (source, add, quantize)


def _flatten(graph: ir.Graph, weight: ir.Node, source: ir.Node, add: ir.Node, quantize: ir.Node) -> None:
    out, columns = array_of(input_of(weight, 0)).shape
    values = input_of(source, 0)
    rows = ir.node("Reshape", [values, initializer(graph, f"rows/{columns}", np.array([-1, columns]))])
    floats = ir.node("DequantizeLinear", [rows.outputs[0], *source.inputs[1:]])
    gemm = ir.node("Gemm", [floats.outputs[0], weight.outputs[0], input_of(add, 1)], attributes={"transB": 1})
    quantized = ir.node("QuantizeLinear", [gemm.outputs[0], *quantize.inputs[1:]])
    sizes = ir.node("Shape", [values], attributes={"end": -1})
    shape = ir.node("Concat", [sizes.outputs[0], initializer(graph, f"columns/{out}", np.array([out]))], attributes={"axis": 0})
    result = ir.node("Reshape", [quantized.outputs[0], shape.outputs[0]])
    graph.insert_before(quantize, [rows, floats, gemm, quantized, sizes, shape, result])
    replace(graph, quantize, result.outputs[0])


def quantize_linear_inputs(model: ir.Model) -> None:
    """Makes each linear layer with an int8 weight dynamic: its input is quantized by its own range at run time.

    The form that onnxruntime fuses to DynamicQuantizeMatMul: the scale of the input times the weight's scale per column is applied
    to the int32 accumulator.

    What else reads a dequantized weight goes on doing so.
    """
    graph = model.graph
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        for user, _ in list(node.outputs[0].uses()):
            readers = user.outputs[0].uses() if user.op_type == "Transpose" else ((user, 1),)
            for reader, position in list(readers):
                if reader.op_type in ("Gemm", "MatMul") and position == 1:
                    _make_dynamic(graph, node, reader)
            if user.op_type == "Transpose" and not user.outputs[0].uses():
                graph.remove(user, safe=True)
        if not node.outputs[0].uses():
            graph.remove(node, safe=True)


def _make_dynamic(graph: ir.Graph, weight: ir.Node, matmul: ir.Node) -> None:
    def step(op: str, inputs: list[ir.Value], outputs: int = 1, **attributes: ir.DataType | list[int]) -> tuple[ir.Value, ...]:
        node = ir.node(op, inputs, attributes=attributes or None, num_outputs=outputs)
        graph.insert_before(matmul, node)
        return tuple(node.outputs)

    values, scale, zero = step("DynamicQuantizeLinear", [input_of(matmul, 0)], outputs=3)
    (columns,) = step("Transpose", [input_of(weight, 0)], perm=[1, 0])
    (sums,) = step("MatMulInteger", [values, columns, zero])
    (floats,) = step("Cast", [sums], to=ir.DataType.FLOAT)
    (scales,) = step("Mul", [scale, input_of(weight, 1)])
    (result,) = step("Mul", [floats, scales])
    if matmul.op_type == "Gemm" and len(matmul.inputs) > 2:
        (result,) = step("Add", [result, input_of(matmul, 2)])
    replace(graph, matmul, result)
