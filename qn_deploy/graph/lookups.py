"""Large parameters that are no layer's weight, such as position tables, become lookups of all their rows, and so are compressed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.fx import GraphModule, Node

from qn_deploy.graph.constants import add_constant, constant, put_constant
from qn_deploy.graph.operators import Kind, kind_of, weights_of

_aten = torch.ops.aten
_LARGE = 1 << 12  # elements: what a smaller one would save is less than its table takes
_ROW = 8  # elements: rows that blocks of all usual sizes divide
_WHOLE = (Kind.NORM, Kind.RECURRENT)  # what reads such parameters as a part of itself


def look_up(graph_module: GraphModule, learned: Mapping[str, int]) -> None:
    """Rewrites each read of such a parameter P of shape [..., D] to embedding(P as [rows, D], 0 ... rows - 1) in P's shape.

    Args:
        graph_module: it is changed.
        learned: elements of each parameter of the model. A constant that was computed of one, and is larger than it, stays as it is.
    """
    graph = graph_module.graph
    for node in graph.find_nodes(op="get_attr"):
        name, value = str(node.target), constant(graph_module, node)
        if value is None or not _LARGE <= value.numel() <= learned.get(name, 0) or value.ndim < 2 or value.shape[-1] < _ROW:
            continue
        readers = list(node.users)
        rows = value.numel() // value.shape[-1]
        if rows < 2 or any(node in weights_of(reader) or kind_of(reader) in _WHOLE or reader.op == "output" for reader in readers):
            continue
        put_constant(graph_module, name, nn.Parameter(value.reshape(rows, -1)))
        with graph.inserting_after(node):
            numbers = add_constant(graph_module, f"{name}_rows", torch.arange(rows))
        with graph.inserting_after(numbers):
            found = graph.call_function(_aten.embedding.default, (node, numbers))
        with graph.inserting_after(found):
            whole = graph.call_function(_aten.reshape.default, (found, list(value.shape)))
        _inherit(readers[0], found, whole)
        for reader in readers:
            reader.replace_input_with(node, whole)


def _inherit(reader: Node, *nodes: Node) -> None:
    """New nodes belong to the module in which the parameter is read first."""
    for node in nodes:
        node.meta |= {key: reader.meta[key] for key in ("nn_module_stack", "stack_trace") if key in reader.meta}
