"""The graph form: weights are looked up in their tables, and multiplied, by operators that the graph itself holds.

Nothing is expanded when the program is loaded and no native code is needed. A layer looks up some rows of its weight at a time, in a
buffer that all layers share, so that memory does not grow with the weights. The price is that it does so at every run.
"""

from __future__ import annotations

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from qn_deploy.graph.dynamic_shapes import export_like
from qn_deploy.graph.operators import LINEAR
from qn_deploy.lowering.insert import INT8_SUFFIX, buffer, look_up_rows
from qn_deploy.lowering.lower import Lowered
from qn_deploy.program.program import Batch
from qn_deploy.weights.compressed import CompressedWeight, IntWeight

AT_A_TIME = 1 << 19  # weights that are looked up at a time, 2 MiB in float32: more is slower, fewer grow the file
_aten = torch.ops.aten


def look_up_weights(lowered: Lowered, inputs: Batch) -> tuple[ExportedProgram, list[str]]:
    """The graph with each compressed float weight replaced by lookups, and a remark on each layer that runs slowly for it.

    Args:
        lowered: with float activations; its compressed weights are float constants.
        inputs: example inputs.
    """
    graph_module: GraphModule = lowered.exported.module(check_guards=False)
    remarks = []
    for node in [node for node in graph_module.graph.nodes if node.op == "get_attr" and node.target in lowered.weights]:
        name, weight = str(node.target), lowered.weights[str(node.target)]
        for user in list(node.users):
            with graph_module.graph.inserting_before(user):
                if user.target in LINEAR and user.args[1] is node:
                    user.replace_all_uses_with(_linear(graph_module, user, name, weight))
                    graph_module.graph.erase_node(user)
                else:
                    user.replace_input_with(node, _whole(graph_module, name, weight))
                    operator = str(user.target).removeprefix("aten.").partition(".")[0]
                    remarks.append(f"{name} is looked up as a whole at every run: XNNPACK takes no computed weight for {operator}")
        graph_module.graph.erase_node(node)
    graph_module.graph.lint()
    graph_module.recompile()
    return export_like(graph_module, lowered.exported, inputs), remarks


def look_up_late(graph: Graph, inputs: set[str]) -> None:
    """Moves each node that does not depend on the program's inputs to where it is needed first.

    Lowering puts all lookups before the first product, where the rows of all layers are alive at once.

    Args:
        graph: the lowered graph, before its memory is planned; it is changed.
        inputs: names of the program's inputs.
    """
    variable: set[Node] = set()
    for node in graph.nodes:
        if node.name in inputs or variable & set(node.all_input_nodes):
            variable.add(node)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node not in variable and node.users:
            min(node.users).prepend(node)  # nodes compare by their place in the graph
    graph.lint()


def _linear(graph_module: GraphModule, node: Node, name: str, weight: CompressedWeight) -> Node:
    """linear(x [..., in], weight [out, in], bias) as products of some rows of the weight with x transposed.

    The weight is the first factor, as XNNPACK packs the second one at every run.
    """
    call = graph_module.graph.call_function
    x, bias = node.args[0], node.args[2] if len(node.args) > 2 else None
    assert isinstance(x, Node)
    out, columns = weight.shape
    sizes = [call(_aten.sym_size.int, (x, axis)) for axis in range(x.meta["val"].ndim - 1)]
    rows = call(_aten.reshape.default, (x, [-1, columns]))
    transposed = call(_aten.unsqueeze.default, (call(_aten.permute.default, (rows, [1, 0])), 0))
    step = max(1, AT_A_TIME // columns)
    parts = []
    for begin in range(0, out, step):
        ids = buffer(graph_module, f"{name}_rows_{begin}", torch.arange(begin, min(begin + step, out)))
        values = look_up_rows(graph_module, ids, name, weight)
        parts.append(call(_aten.bmm.default, (call(_aten.unsqueeze.default, (values, 0)), transposed)))
    product = call(_aten.squeeze.dims, (call(_aten.cat.default, (parts, 1)) if len(parts) > 1 else parts[0], [0]))
    scale = buffer(graph_module, f"{name}_out_scale", weight.scale.clone())
    result = call(_aten.mul.Tensor, (call(_aten.permute.default, (product, [1, 0])), scale))
    if bias is not None:
        result = call(_aten.add.Tensor, (result, bias))
    result = call(_aten.reshape.default, (result, [*sizes, out]))
    result.meta["val"] = node.meta["val"]  # the next layer asks for its dimensions
    return result


def _whole(graph_module: GraphModule, name: str, weight: CompressedWeight) -> Node:
    """The float weight in its own shape."""
    call = graph_module.graph.call_function
    if isinstance(weight, IntWeight):
        values = call(_aten._to_copy.default, (buffer(graph_module, f"{name}{INT8_SUFFIX}", weight.int8()),), {"dtype": torch.float32})
    else:
        ids = buffer(graph_module, f"{name}_rows", torch.arange(weight.shape[0]))
        values = call(_aten.reshape.default, (look_up_rows(graph_module, ids, name, weight), list(weight.shape)))
    scale = buffer(graph_module, f"{name}_scales", weight.scale.reshape(-1, *[1] * (len(weight.shape) - 1)))
    return call(_aten.mul.Tensor, (values, scale))
