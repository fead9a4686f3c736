"""A table in an ONNX graph: codes and centroids as initializers, and the standard operators that decode them to the int8 weight.

    codes [out, B]  -> Cast to int32 -> Add offsets of the codebooks, if there are several -> Gather of centroids -> Reshape: int8

Two codes share a byte as uint4 (opset 21), over 256 centroids a code is uint16. Where an embedding is tied with the layer, the chain
starts from the rows that the embedding looks up: one table, two readers. The values of a residual table are added in int32 and clipped.
onnxruntime folds all of it when the session loads, and every int8 fusion still fires.
"""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from qn_deploy.lowering.insert import CODE_PAIRS
from qn_deploy.recipe.methods import code_bits
from qn_deploy.weights.compressed import INT8_MAX, PQWeight
from qn_deploy.weights.packing import code_pairs, code_rows, packs_rows, row_offsets

Step = Callable[..., ir.Value]


def decoded(graph: ir.Graph, layer: str, weight: PQWeight) -> ir.Value:
    """The int8 weight of `layer`, of the weight's own shape, decoded at the beginning of the graph."""
    nodes: list[ir.Node] = []

    def step(operator: str, *inputs: ir.Value, **attributes: ir.DataType) -> ir.Value:
        nodes.append(ir.node(operator, inputs, attributes=attributes or None))
        return nodes[-1].outputs[0]

    shape = shape_of(graph, weight.shape)
    values, *residual = (
        step("Reshape", _blocks(graph, step, layer, prefix, table), shape)
        for prefix, table in zip(("", "residual_"), weight.tables, strict=False)
    )
    for second in residual:
        low, high = (initializer(graph, f"int8/{name}", np.int32(end)) for name, end in (("low", -INT8_MAX), ("high", INT8_MAX)))
        total = step("Add", *(step("Cast", part, to=ir.DataType.INT32) for part in (values, second)))
        values = step("Cast", step("Clip", total, low, high), to=ir.DataType.INT8)
    graph.insert_before(graph[0], nodes)
    return values


def initializer(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """The initializer `name` of a graph, made from `array` unless it is there already."""
    if name not in graph.initializers:
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        kind = ir.TensorType(tensor.dtype)
        graph.register_initializer(ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=tensor))
    return graph.initializers[name]


def shape_of(graph: ir.Graph, shape: tuple[int, ...]) -> ir.Value:
    """A shape as an initializer; weights of one shape share it."""
    return initializer(graph, f"shape/{'x'.join(map(str, shape))}", np.array(shape, np.int64))


def has_uint4(weight: PQWeight) -> bool:
    """True if codes of the weight take 4 bits, for which the model needs opset 21."""
    return any(code_bits(table.centroids.shape[1]) == 4 for table in weight.tables)


def _blocks(graph: ir.Graph, step: Step, layer: str, prefix: str, table: PQWeight) -> ir.Value:
    """int8 [..., d]: the block that each code stands for, in the order of the codes."""
    books, size, d = table.centroids.shape
    looked_up = f"{layer}_{prefix}codes" in graph.initializers
    for part in ("codes", "centroids"):
        if looked_up:
            graph.initializers[f"{layer}_{prefix}{part}"].name = f"{layer}/{prefix}{part}"
    rows = _looked_up_rows(graph, step, layer, prefix, table) if looked_up else _rows(graph, step, layer, prefix, table)
    centroids = table.centroids.reshape(books * size, d).numpy()
    return step("Gather", initializer(graph, f"{layer}/{prefix}centroids", centroids), rows)


def _rows(graph: ir.Graph, step: Step, layer: str, prefix: str, table: PQWeight) -> ir.Value:
    codes, offsets = table.codes.numpy(), table.offsets.numpy()
    books, size, _ = table.centroids.shape
    if codes.shape[1] % books == 0:  # every codebook has as many columns: one offset for each is enough
        codes, offsets = codes.reshape(len(codes), books, -1), offsets.reshape(books, -1)[:, :1]
    if code_bits(size) == 4:
        codes = codes.astype(ml_dtypes.uint4)
    rows = step("Cast", initializer(graph, f"{layer}/{prefix}codes", codes), to=ir.DataType.INT32)
    return step("Add", rows, initializer(graph, f"{layer}/{prefix}offsets", offsets)) if books > 1 else rows


def _looked_up_rows(graph: ir.Graph, step: Step, layer: str, prefix: str, table: PQWeight) -> ir.Value:
    """The same from the form in which an embedding holds the codes; see `packing.code_rows`."""
    rows = step("Cast", initializer(graph, f"{layer}/{prefix}codes", code_rows(table).numpy()), to=ir.DataType.INT32)
    if packs_rows(table):
        pairs = step("Gather", initializer(graph, CODE_PAIRS, code_pairs().numpy()), rows)
        shape = initializer(graph, f"{layer}/{prefix}codes_shape", np.array(table.codes.shape, np.int64))
        rows = step("Cast", step("Reshape", pairs, shape), to=ir.DataType.INT32)
    offsets = row_offsets(table)
    return step("Add", rows, initializer(graph, f"{layer}/{prefix}offsets", offsets.numpy())) if offsets.any() else rows
