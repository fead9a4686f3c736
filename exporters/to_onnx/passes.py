"""Rewrites of the ONNX graph that torch.onnx gives. Each pass takes the model and changes one thing.

In this order (see `write.py`; the two of linear layers are in `linears.py`, that of transposed convolutions in `transposed.py`, the
last four, which only make the graph smaller, in `trim.py`):
    fold_constants         operators on constants                    -> initializer
    unsigned_activations   int8 activation zero points               -> uint8, + 128
    absorb_clamps          Relu, Clip before a range within theirs   -> removed, else a quantize/dequantize pair goes before
    sum_integers           ConvTranspose of int8 values              -> of the steps -> Mul
    flatten_linears        MatMul of more dimensions, Add of a bias  -> Reshape -> Gemm -> Reshape
    pool_globally          ReduceMean over height and width          -> GlobalAveragePool
    unpair_weights         DequantizeLinear(W) that no int8 op reads -> Mul(Cast(W))
    insert_tables          int8 weight                               -> Reshape(Gather(centroids, Cast(codes)))
    quantize_linear_inputs DequantizeLinear(W) -> MatMul, Gemm       -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul
    settle_shapes          Reshape by a shape put together           -> by a constant, where one size alone is unknown
    join_reshapes          Reshape -> DequantizeLinear -> Reshape    -> without the first
    share_constants        equal scales, zero points, sizes          -> one initializer
    strip                  stack traces, shapes of inner values, doc strings and attributes of default value are removed
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from qn_deploy.lowering.insert import INT8_SUFFIX
from qn_deploy.quiet import quiet
from qn_deploy.weights.compressed import CompressedWeight, PQWeight

from .graph import array_of, input_of, maker_of, only_reader, replace
from .names import COLUMN, DECODED, SCALE
from .tables import decoded, initializer, shape_of

_NO_LIMIT = 2**31
_NARROW = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16)  # values and codes
_FEW = 32  # bytes that an initializer may take where a node would do


def fold_constants(model: ir.Model) -> None:
    """Computes what depends on constants only; quantize and dequantize nodes stay, and so do lookups in codes and int8 rows.

    onnxscript casts every scale and zero point; left in place the casts stand between a weight and the fusions that look for constants.
    """
    with quiet():
        optimizer.fold_constants(model, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT, should_fold=_folds)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)


def _folds(node: ir.Node) -> bool | None:
    """False for a lookup of 8 or 16-bit rows, whose result would be stored as floats; None where onnxscript is to decide."""
    rows = node.inputs[0] if node.op_type == "Gather" else None
    return False if rows is not None and rows.is_initializer() and rows.dtype in _NARROW else None


def copy_constant_outputs(model: ir.Model) -> None:
    """Gives each output that is a constant a node of its own: onnxruntime takes no initializer for an output."""
    graph = model.graph
    for index, value in enumerate(graph.outputs):
        if value.is_initializer():
            name, copy = value.name, ir.node("Identity", [value])
            value.name = f"{name}/constant"
            result = copy.outputs[0]
            result.name, result.type, result.shape = name, value.type, value.shape
            graph.append(copy)
            graph.outputs[index] = result


def unsigned_activations(model: ir.Model, weights: Mapping[str, CompressedWeight]) -> None:
    """Writes 8-bit activations as uint8: zero point + 128, the numbers stay the same.

    onnxruntime on x86 turns int8 pairs into uint8 only where they have a single reader, so at every residual fork the types would
    stop matching and the fusion would be lost.
    """
    graph = model.graph
    for node in graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or input_of(node, 0).name in weights:
            continue
        zero = array_of(input_of(node, 2))
        if zero.dtype == np.int8:
            unsigned = initializer(graph, f"{input_of(node, 2).name}_uint8", (zero.astype(np.int16) + 128).astype(np.uint8))
            node.replace_input_with(2, unsigned)


def absorb_clamps(model: ir.Model) -> None:
    """Removes each Relu and Clip whose output is quantized by a range between its least and its greatest value: quantizing clamps the same.

    onnxruntime does so too, but after a linear layer on more than two dimensions too late, and not where the range ends a rounding error
    beyond the Clip: the layer would stay in float. So it would before a wider range, as a concatenation has one; there the operator is
    quantized by that range, then clamped. Behind a DequantizeLinear both stay: onnxruntime would join the two ranges around them.
    """
    for node in model.graph:
        if node.op_type not in ("Relu", "Clip") or node.outputs[0].is_graph_output() or maker_of(node, 0, "DequantizeLinear"):
            continue
        readers = [reader for reader, _ in node.outputs[0].uses()]
        if all(_clamps_as(reader, node) for reader in readers):
            node.outputs[0].replace_all_uses_with(input_of(node, 0))
            model.graph.remove(node, safe=True)
        elif (quantize := only_reader(node, "QuantizeLinear")) is not None:
            steps = ir.node("QuantizeLinear", [input_of(node, 0), *quantize.inputs[1:]])
            values = ir.node("DequantizeLinear", [steps.outputs[0], *quantize.inputs[1:]])
            model.graph.insert_before(node, [steps, values])
            node.replace_input_with(0, values.outputs[0])


def _clamps_as(reader: ir.Node, clamp: ir.Node) -> bool:
    """True if `reader` quantizes, and a value beyond the bounds of `clamp` becomes its least or greatest step with the clamp or without."""
    if reader.op_type != "QuantizeLinear":
        return False
    bounds = (0.0, np.inf) if clamp.op_type == "Relu" else tuple(float(array_of(input_of(clamp, index))) for index in (1, 2))
    scale, zero = (array_of(input_of(reader, index)) for index in (1, 2))
    low, high = np.rint(np.array(bounds) / scale) + zero
    return bool(low <= np.iinfo(zero.dtype).min and high >= np.iinfo(zero.dtype).max)


def pool_globally(model: ir.Model) -> None:
    """Writes the mean over height and width as the pooling operator, which onnxruntime runs on int8 and rounds exactly.

    As a ReduceMean it would stay in float, where the frequent ties of a mean of integers are rounded by chance.
    """
    for node in model.graph:
        if node.op_type != "ReduceMean" or len(node.inputs) < 2 or (shape := input_of(node, 0).shape) is None or len(shape) != 4:
            continue
        keeps = "keepdims" not in node.attributes or node.attributes["keepdims"].as_int() == 1
        if keeps and sorted(axis % 4 for axis in array_of(input_of(node, 1)).tolist()) == [2, 3]:
            pool = ir.node("GlobalAveragePool", [input_of(node, 0)])
            model.graph.insert_before(node, pool)
            replace(model.graph, node, pool.outputs[0])


def unpair_weights(model: ir.Model, weights: Mapping[str, CompressedWeight]) -> None:
    """Dequantizes `weights`, which no operator reads as int8, by Cast and Mul, which onnxruntime computes when it loads.

    It would keep a DequantizeLinear, run it each time, and make a copy for each reader; several copies do not load on x86, see
    `insert_tables`. Before a MatMul it would quantize the float input as well (MatMulNBits).
    """
    graph = model.graph
    for node in [node for node in graph if node.op_type == "DequantizeLinear"]:
        name = str(input_of(node, 0).name)
        weight = weights.get(name)
        if weight is not None:
            columns = weight.scale.reshape(-1, *[1] * (len(weight.shape) - 1)).numpy()
            cast = ir.node("Cast", [input_of(node, 0)], attributes={"to": ir.DataType.FLOAT})
            product = ir.node("Mul", [cast.outputs[0], initializer(graph, f"{name.removesuffix(INT8_SUFFIX)}{COLUMN}", columns)])
            graph.insert_before(node, [cast, product])
            replace(graph, node, product.outputs[0])


def insert_tables(model: ir.Model, weights: Mapping[str, CompressedWeight]) -> None:
    """Stores each table-compressed weight as codes and centroids, which `tables.decoded` decodes.

    The codes keep torch's own row order, which needs no Transpose and has the lowest peak while loading.
    """
    graph = model.graph
    for name, weight in weights.items():
        if name not in graph.initializers:
            continue
        layer = name.removesuffix(INT8_SUFFIX)
        readers = [node for node, _ in graph.initializers[name].uses() if node.op_type == "DequantizeLinear"]  # not an embedding
        scales = [array_of(input_of(dequantize, 1)) for dequantize in readers]
        for index, (dequantize, scale) in enumerate(zip(readers, scales, strict=True)):
            # A transposed convolution has one scale, or none, where another layer that reads its weight has one for each row.
            owner = layer if np.array_equal(scale, scales[0]) else _again(layer, index + 1)
            dequantize.replace_input_with(1, initializer(graph, f"{owner}{SCALE}", scale))
            dequantize.replace_input_with(2, _zero_points(graph, dequantize, f"{layer}/zero{index or ''}"))
        values = graph.initializers[name]
        if isinstance(weight, PQWeight):
            values = decoded(graph, layer, weight)
            graph.initializers[name].replace_all_uses_with(values)
            del graph.initializers[name]
        values.name = f"{layer}{DECODED}"
        for index, dequantize in enumerate(readers[1:], start=2):
            # A layer that is called again reads a copy, which is made when the session loads: for exact sums on x86, onnxruntime turns
            # the int8 weight of each layer into uint8, under a name made of the weight's. A copy of a copy, or two would become one.
            copy = ir.node("Reshape", [values, shape_of(graph, weight.shape)])
            graph.insert_before(readers[1], copy)
            values = copy.outputs[0]
            values.name = f"{_again(layer, index)}{DECODED}"
            dequantize.replace_input_with(0, values)


def _again(layer: str, count: int) -> str:
    """The name of a weight that is read for the second time, the third and so on."""
    return f"{layer.removesuffix('.weight')}_{count}.weight"


def _zero_points(graph: ir.Graph, dequantize: ir.Node, name: str) -> ir.Value:
    """The zero points of a weight, one for each row, in a form of its own.

    They are explicit: without them onnxruntime loses the fusion of Gemm, silently. No two layers share them: it would fail to load,
    because it names the bias that it quantizes after them. Many zeros are the scales, all below 1, cast to integers when the session
    loads: a node takes fewer bytes than they do, and onnxruntime does not find two of them equal.
    """
    zeros, scale = array_of(input_of(dequantize, 2)), input_of(dequantize, 1)
    if zeros.size <= _FEW or array_of(scale).max() >= 1 or any(reader.op_type == "Cast" for reader, _ in scale.uses()):
        return initializer(graph, name, zeros)
    cast = ir.node("Cast", [scale], attributes={"to": ir.DataType.INT8})
    graph.insert_before(graph[0], cast)
    return cast.outputs[0]
