"""Transposed convolutions, for which onnxruntime has no int8 kernel: float32 that holds integers, so that the sums are those of int32."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .graph import array_of, input_of, maker_of, only_reader
from .tables import initializer


def sum_integers(model: ir.Model) -> None:
    """Multiplies the steps of input and weight instead of their values, and scales the sum once, as XNNPACK requantizes it.

    Products of values are rounded, and their sum depends on its order; a sum of integers below 2^24 is exact in float32.
    """
    graph = model.graph
    one = np.array(1, np.float32)
    for number, node in enumerate([node for node in graph if node.op_type == "ConvTranspose"]):
        source, weight = (maker_of(node, index, "DequantizeLinear") for index in (0, 1))
        quantize = only_reader(only_reader(node, "Relu") or node, "QuantizeLinear")
        if source is None or weight is None or quantize is None or array_of(input_of(weight, 1)).size > 1:
            continue
        scale = array_of(input_of(source, 1)) * array_of(input_of(weight, 1))
        steps = ir.node("DequantizeLinear", [input_of(source, 0), initializer(graph, "one", one), input_of(source, 2)])
        graph.insert_before(node, steps)
        node.replace_input_with(0, steps.outputs[0])  # others may read its values
        ratio = scale / array_of(input_of(quantize, 1))
        weight.replace_input_with(1, initializer(graph, "one", one))
        if len(node.inputs) > 2:
            bias = input_of(node, 2)
            node.replace_input_with(2, initializer(graph, f"{bias.name}/int32{number or ''}", np.rint(array_of(bias) / scale)))
        factor = initializer(graph, f"{input_of(weight, 0).name}/ratio{number or ''}", ratio)  # a layer that runs again has another
        product = ir.node("Mul", [input_of(quantize, 0), factor])
        graph.insert_before(quantize, product)
        quantize.replace_input_with(0, product.outputs[0])
        quantize.replace_input_with(1, initializer(graph, "one", one))
