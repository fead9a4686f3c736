"""The operators of our library, each as a function of standard operators that means the same.

A node `qn_deploy.TableLinear` runs in two worlds. Stock onnxruntime puts the function's body in its place before it optimises: the table is
expanded when the session loads, and the int8 fusions fire as for a file without functions. With our library registered
(`native/qn_onnx_ops.cpp`) onnxruntime takes the operator, and the table stays as it is in memory.

    TableLinear         uint8 x [..., in] -> uint8 [..., out]            static activations
    TableMatMul         the same without a bias, which is passed and not read: onnxruntime fuses these two forms
    TableConv           uint8 x [N, in, H, W] -> uint8 [N, out, H, W]    static activations, a convolution of 1x1
    DynamicTableLinear  uint8 x [..., in] -> float32 [..., out]          the scale and zero point of x come at run time

Codes are in the kernels' order (`exporters/kernels/packing.py`): uint4 [tiles, groups, 64, 4], or uint8 [out, 1, 1, B] over 16 centroids.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .names import DECODED

DOMAIN = "qn_deploy"
STATIC, STATIC_MATMUL, STATIC_CONV, DYNAMIC = "TableLinear", "TableMatMul", "TableConv", "DynamicTableLinear"
OPSET = 21  # of the functions: that of uint4

_TABLE = ("codes", "centroids", "offsets", "size")
_INPUT, _OUTPUT = ("x", "x_scale", "x_zero"), ("w_zero", "y_scale", "y_zero")
INPUTS = {
    DYNAMIC: (*_INPUT, *_TABLE, "w_scale", "bias"),
    **dict.fromkeys((STATIC, STATIC_MATMUL, STATIC_CONV), (*_INPUT, *_TABLE, "w_scale", "bias", *_OUTPUT)),
}
WEIGHT = "int8"  # the decoded weight, inside a function

_node = helper.make_node


def function(operator: str) -> onnx.FunctionProto:
    """The function of an operator."""
    body = {
        DYNAMIC: lambda: [*_decode([0, -1]), *_dynamic()],
        STATIC: lambda: [*_decode([0, -1]), *_static([_node("Gemm", ["x_float", "w_float", "bias"], ["y_float"], transB=1)])],
        STATIC_CONV: lambda: [*_decode([0, -1, 1, 1]), *_static([_node("Conv", ["x_float", "w_float", "bias"], ["y_float"])])],
        STATIC_MATMUL: lambda: [
            *_decode([0, -1]),
            *_static([_node("Transpose", ["w_float"], ["columns"], perm=[1, 0]), _node("MatMul", ["x_float", "columns"], ["y_float"])]),
        ],
    }[operator]()
    imports = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, operator, list(INPUTS[operator]), ["y"], body, imports)


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with the body of its function in place of each node; a decoded weight is named after its layer's codes."""
    if not model.functions:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    bodies = {entry.name: entry for entry in model.functions if entry.domain == DOMAIN}
    del result.functions[:], result.graph.node[:]
    for node in model.graph.node:
        body = bodies.get(node.op_type) if node.domain == DOMAIN else None
        result.graph.node.extend([node] if body is None else _body(node, body))
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del result.opset_import[:]
    result.opset_import.extend(kept)
    return result


def _body(call: onnx.NodeProto, body: onnx.FunctionProto) -> list[onnx.NodeProto]:
    names = dict(zip((*body.input, *body.output), (*call.input, *call.output), strict=True))
    names[WEIGHT] = names["codes"].rpartition("/")[0] + DECODED
    nodes = []
    for entry in body.node:
        node = onnx.NodeProto()
        node.CopyFrom(entry)
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = names.setdefault(name, f"{call.output[0]}/{name}")
        if node.op_type in ("Gemm", "MatMul", "Conv", "MatMulInteger"):
            node.name = call.name
        nodes.append(node)
    return nodes


def _decode(shape: list[int]) -> list[onnx.NodeProto]:
    return [
        _constant("begin", [0, 0]),
        _constant("shape", shape),
        _node("Cast", ["codes"], ["tiles"], to=TensorProto.UINT8),
        _node("Transpose", ["tiles"], ["rows"], perm=[0, 2, 1, 3]),
        _node("Flatten", ["rows"], ["padded"], axis=2),
        _node("Slice", ["padded", "begin", "size"], ["own"]),
        _node("Cast", ["own"], ["indices"], to=TensorProto.INT32),
        _node("Add", ["indices", "offsets"], ["entries"]),
        _node("Gather", ["centroids", "entries"], ["blocks"]),
        _node("Reshape", ["blocks", "shape"], [WEIGHT]),
    ]


def _static(product: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    return [
        _node("DequantizeLinear", [WEIGHT, "w_scale", "w_zero"], ["w_float"], axis=0),
        _node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_float"]),
        *product,
        _node("QuantizeLinear", ["y_float", "y_scale", "y_zero"], ["y"]),
    ]


def _dynamic() -> list[onnx.NodeProto]:
    return [
        _node("Transpose", [WEIGHT], ["columns"], perm=[1, 0]),
        _node("MatMulInteger", ["x", "columns", "x_zero"], ["sums"]),
        _node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        _node("Mul", ["x_scale", "w_scale"], ["scale"]),
        _node("Mul", ["floats", "scale"], ["product"]),
        _node("Add", ["product", "bias"], ["y"]),
    ]


def _constant(name: str, values: list[int]) -> onnx.NodeProto:
    return _node("Constant", [], [name], value=numpy_helper.from_array(np.array(values, np.int64), name))
