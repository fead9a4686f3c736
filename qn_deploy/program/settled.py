"""What an exported graph must look like before anything else works on it, and the passes that make it so.

In this order:
    1. operators work out of place; regions without gradients or autocast, dropout and assertions are gone (torch's own functionalisation);
       an LSTM with a projection is its steps, a BatchNorm by statistics of the batch its mean and variance
    2. products with constant matrices are linear layers, values that depend on constants alone are constants, BatchNorm is folded,
       large parameters that no layer reads are looked up
    3. reshaping does not depend on how values lie in memory (`reshape`, not `view` or `_unsafe_view`); a slice of everything is gone
    4. the graph takes and returns flat tuples of tensors: inputs that are no tensors, and outputs that are left out, are gone

Everything after it may rely on that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from qn_deploy.errors import ExportError
from qn_deploy.graph.batchnorm import fold_batchnorm
from qn_deploy.graph.constants import fold_constants, put_constant
from qn_deploy.graph.dynamic_shapes import export_like
from qn_deploy.graph.lookups import look_up
from qn_deploy.graph.matrices import make_linear
from qn_deploy.graph.written_out import decompositions
from qn_deploy.program.program import Batch

_aten = torch.ops.aten


def settled(
    exported: ExportedProgram, inputs: Batch, kept: Sequence[int] | None = None, rename: Callable[[str], str] = str
) -> ExportedProgram:
    """The same computation as a graph that the rest of the project takes.

    Args:
        exported: as torch.export captured it; it is not changed.
        inputs: an example tensor for each input that is one, in the graph's order.
        kept: indices of the outputs that the program returns; None for all.
        rename: gives parameters, buffers and constants their names, from those that they have in `exported`. One that is tied has the
            first of its names.

    Raises:
        ExportError: the graph changes a buffer or an input in place.
    """
    first = _first_names(exported)

    def named(name: str) -> str:
        return rename(first.get(name, name))

    with torch.no_grad():
        functional = exported.run_decompositions(decompositions())
        _check_unchanged(functional, named)
        unlifted = functional.module(check_guards=False)
        assert isinstance(unlifted, GraphModule)
        graph_module = _renamed(unlifted, named)
        learned = {name: parameter.numel() for name, parameter in graph_module.named_parameters()}
        make_linear(graph_module)
        fold_constants(graph_module)
        fold_batchnorm(graph_module)
        look_up(graph_module, learned)
        for node in graph_module.graph.nodes:
            if node.target in (_aten.view.default, _aten._unsafe_view.default):
                node.target = _aten.reshape.default
            elif node.target is _aten.alias.default:  # an output stays one of its own
                node.replace_all_uses_with(node.args[0], delete_user_cb=lambda user: user.op != "output")
        flat = _flattened(graph_module, kept)
        return export_like(flat, functional, inputs)


def _first_names(exported: ExportedProgram) -> dict[str, str]:
    """For each parameter and buffer the first name of those that share its values, in the model's order."""
    first: dict[tuple[Any, ...], str] = {}
    return {
        name: first.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()), name)
        for name, tensor in exported.state_dict.items()
        if tensor.numel()
    }


def _check_unchanged(functional: ExportedProgram, rename: Callable[[str], str]) -> None:
    """Refuses a model that keeps something from one run for the next, or writes into its inputs: no exported file could."""
    signature = functional.graph_signature
    changed = [*map(rename, signature.buffers_to_mutate.values()), *(f"input {name}" for name in signature.user_inputs_to_mutate.values())]
    if changed:
        raise ExportError(
            f"the model's forward changes {', '.join(changed)} in place; a program is the same in each run and keeps its inputs. "
            "Compute a new tensor instead, x = x + 1, or leave the update out in eval mode"
        )


def _flattened(graph_module: GraphModule, kept: Sequence[int] | None) -> GraphModule:
    graph = graph_module.graph
    for node in [node for node in graph.nodes if node.op == "placeholder" and not isinstance(node.meta.get("val"), Tensor)]:
        if node.users:
            raise ExportError(
                f"the input {node.name} is no tensor, and the graph computes with it; give it as a Python constant that does not change, "
                "or as a tensor"
            )
        graph.erase_node(node)
    output: Any = next(node for node in graph.nodes if node.op == "output")
    output.args = (tuple(output.args[0] if kept is None else (output.args[0][index] for index in kept)),)
    graph.set_codegen(torch.fx.graph.CodeGen())
    graph.eliminate_dead_code()
    return _renamed(graph_module, str)


def _renamed(graph_module: GraphModule, rename: Callable[[str], str]) -> GraphModule:
    """The graph with other names for its constants, as a module that holds what the graph reads and nothing else."""
    graph, root = graph_module.graph, nn.Module()
    for node in graph.nodes:
        if node.op == "get_attr":
            value = operator.attrgetter(str(node.target))(graph_module)
            node.target = rename(str(node.target))
            put_constant(root, node.target, value)
    return GraphModule(root, graph)
