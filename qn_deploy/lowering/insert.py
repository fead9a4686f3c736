"""Puts the compressed weights into a graph: int8 beside a dequantize node, and lookups in tables where an embedding reads them."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor
from torch.fx import GraphModule, Node

from qn_deploy.graph.operators import TRANSPOSED
from qn_deploy.weights.compressed import INT8_MAX, CompressedWeight, PQWeight
from qn_deploy.weights.packing import code_pairs, code_rows, packs_rows, row_offsets

aten = torch.ops.aten
INT8_SUFFIX = "_int8"  # "conv.weight" is stored as the buffer "conv.weight_int8"
CODE_PAIRS = "qn_code_pairs"  # the buffer with which packed codes are looked up


def insert_weights(
    graph_module: GraphModule,
    weights: dict[str, CompressedWeight],
    takes_int8: Callable[[Node], bool],
    per_tensor: bool = False,
    dense: MutableMapping[str, Tensor] | None = None,
) -> dict[str, CompressedWeight]:
    """Replaces each compressed float weight by its int8 buffer and a dequantize node, or by table lookups under an embedding.

    Args:
        graph_module: it is changed.
        weights: compressed forms by parameter name; 4-bit values as tables.
        takes_int8: whether a reader of a weight gets it as int8; where not, it stays a float constant.
        per_tensor: a weight of one scale is dequantized by it alone; else by one scale for each row, all equal, which every runtime takes.
        dense: int8 buffers by their names, which all graphs of one program share; missing ones are added.

    Returns:
        The form of each int8 buffer and of each float constant that stayed, by its name.
    """
    stored: dict[str, CompressedWeight] = {}
    dense = {} if dense is None else dense
    for node in [node for node in graph_module.graph.nodes if node.op == "get_attr"]:
        weight = weights.get(str(node.target))
        if weight is None:
            continue
        for user in list(node.users):
            if user.target is aten.embedding.default:
                _look_up(graph_module, user, str(node.target), weight)
        # A layer that is called twice gets two dequantize nodes with a zero point each: onnxruntime names the bias that it
        # quantizes for a layer after the zero point, and refuses to load a second one of the same name.
        for index, user in enumerate([user for user in node.users if takes_int8(user)]):
            name = f"{node.target}{INT8_SUFFIX}"
            stored[name] = weight
            if name not in dense:
                dense[name] = weight.int8()
            one_scale = per_tensor or user.target in TRANSPOSED
            with graph_module.graph.inserting_before(user):
                user.replace_input_with(node, _dequantize(graph_module, name, weight, dense[name], index, one_scale))
        if node.users:
            stored[str(node.target)] = weight
        else:
            graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    return stored


def _dequantize(graph_module: GraphModule, name: str, weight: CompressedWeight, dense: Tensor, reader: int, one_scale: bool) -> Node:
    decomposed, call = torch.ops.quantized_decomposed, graph_module.graph.call_function
    values = buffer(graph_module, name, dense)
    if one_scale and weight.scale.numel() == 1:  # the rows of a transposed layer are its input channels: no runtime has scales for these
        return call(decomposed.dequantize_per_tensor.default, (values, weight.scale.item(), 0, -INT8_MAX, INT8_MAX, torch.int8))
    out = weight.shape[0]
    scale = buffer(graph_module, f"{name}_scale", weight.scale.expand(out).contiguous())
    zero = buffer(graph_module, f"{name}_zero_point{reader or ''}", torch.zeros(out, dtype=torch.int64))
    return call(decomposed.dequantize_per_channel.default, (values, scale, zero, 0, -INT8_MAX, INT8_MAX, torch.int8))


def _look_up(graph_module: GraphModule, embedding: Node, name: str, weight: CompressedWeight) -> None:
    """embedding(weight, ids) -> rows of int8 values * scale, from a table by its codes: nothing is ever expanded."""
    graph, ids = graph_module.graph, embedding.args[1]
    call = graph.call_function
    with graph.inserting_before(embedding):
        floats = look_up_rows(graph_module, ids, name, weight)
        if weight.scale.numel() > 1:
            scale = call(aten.embedding.default, (buffer(graph_module, f"{name}_row_scale", weight.scale[:, None]), ids))
        else:
            scale = buffer(graph_module, f"{name}_scale", weight.scale)
        embedding.replace_all_uses_with(call(aten.mul.Tensor, (floats, scale)))
    graph.erase_node(embedding)


def look_up_rows(graph_module: GraphModule, ids: Any, name: str, weight: CompressedWeight) -> Node:
    """float32 [..., D]: the int8 values of the rows `ids` of a weight, not yet multiplied by its scale."""
    call = graph_module.graph.call_function
    if isinstance(weight, PQWeight):
        parts = [
            _look_up_table(graph_module, ids, f"{name}{suffix}", table)
            for suffix, table in zip(("", "_residual"), weight.tables, strict=False)
        ]
    else:
        parts = [call(aten.embedding.default, (buffer(graph_module, f"{name}{INT8_SUFFIX}", weight.int8()), ids))]
    floats, *residual = (call(aten._to_copy.default, (part,), {"dtype": torch.float32}) for part in parts)
    for second in residual:
        floats = call(aten.clamp.default, (call(aten.add.Tensor, (floats, second)), -INT8_MAX, INT8_MAX))
    return floats


def _look_up_table(graph_module: GraphModule, ids: Any, name: str, table: PQWeight) -> Node:
    """int8 [..., D]: the blocks that the codes of the rows `ids` point to, side by side."""
    call = graph_module.graph.call_function
    books, size, d = table.centroids.shape

    def integers(values: Node) -> Node:
        return call(aten._to_copy.default, (values,), {"dtype": torch.int32})

    rows = integers(call(aten.embedding.default, (buffer(graph_module, f"{name}_codes", code_rows(table)), ids)))
    if packs_rows(table):
        pairs = call(aten.embedding.default, (buffer(graph_module, CODE_PAIRS, code_pairs()), rows))
        rows = integers(call(aten.flatten.using_ints, (pairs, -2, -1)))
    if (offsets := row_offsets(table)).any():
        rows = call(aten.add.Tensor, (rows, buffer(graph_module, f"{name}_offsets", offsets)))
    centroids = buffer(graph_module, f"{name}_centroids", table.centroids.reshape(books * size, d))
    return call(aten.flatten.using_ints, (call(aten.embedding.default, (centroids, rows)), -2, -1))


def buffer(graph_module: GraphModule, name: str, value: Tensor) -> Node:
    """A node that reads the buffer `name`, made from `value` unless it is there already."""
    path, _, leaf = name.rpartition(".")
    owner = graph_module.get_submodule(path)
    if not hasattr(owner, leaf):
        owner.register_buffer(leaf, value)
    return graph_module.graph.get_attr(name)
