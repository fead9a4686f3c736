"""Small steps through an ONNX graph, shared by the passes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def input_of(node: ir.Node, index: int) -> ir.Value:
    """An input that is there."""
    value = node.inputs[index]
    assert value is not None, f"{node.op_type} has no input {index}"
    return value


def replace(graph: ir.Graph, node: ir.Node, new: ir.Value) -> None:
    """Lets all readers of a node read `new`, which takes over its name, and removes the node."""
    old = node.outputs[0]
    new.shape, new.type = old.shape, old.type
    new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def array_of(value: ir.Value) -> np.ndarray:
    """The values of a constant."""
    assert value.const_value is not None, f"{value.name} is no constant"
    return value.const_value.numpy()


def maker_of(node: ir.Node, index: int, operator: str) -> ir.Node | None:
    """The node that makes an input of `node`, if it is this operator."""
    value = node.inputs[index] if index < len(node.inputs) else None
    maker = None if value is None else value.producer()
    return maker if maker is not None and maker.op_type == operator else None


def only_reader(node: ir.Node, operator: str) -> ir.Node | None:
    """The node that alone reads the output of `node`, if it is this operator."""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == operator and not node.outputs[0].is_graph_output() else None
