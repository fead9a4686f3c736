"""The tensors that a graph holds: parameters, buffers and constants, and the same graph with other values in their place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.graph import CodeGen


class Constant(NamedTuple):
    """A tensor that a graph reads by a placeholder of its own."""

    name: str
    value: Tensor


def constants(exported: ExportedProgram) -> dict[Node, Constant]:
    """The tensors of a graph by placeholder, in the order of the graph."""
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    held = {**exported.constants, **exported.state_dict}
    return {
        node: Constant(name, held[name])
        for node in exported.graph.nodes
        if node.op == "placeholder" and (name := names.get(node.name)) is not None
    }


def unlifted(exported: ExportedProgram, hidden: Sequence[str] = ()) -> GraphModule:
    """The graph as a module that holds its constants, takes the inputs and returns a tuple; names of computed nodes stay.

    Unlike `exported.module()` it does not refuse inputs of other sizes than exported files are planned for: a batch of any size runs where
    the graph can compute it.

    Args:
        exported: not changed; the module shares its tensors.
        hidden: names of nodes whose values are returned too, after the outputs.
    """
    held = exported.module(check_guards=False)
    assert isinstance(held, GraphModule)
    nodes = {node.name: node for node in held.graph.nodes}
    nodes["output"].args = ((*nodes["output"].args[0], *(nodes[name] for name in hidden)),)
    held.graph.set_codegen(CodeGen())
    return GraphModule(held, held.graph)  # without the hooks of `held`, which check the sizes


def like(old: Tensor, value: Tensor) -> Tensor:
    """The value as a parameter, if the old one is; torch takes other kernels, and rounds otherwise, where a gradient is wanted."""
    return nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value


def with_constants(exported: ExportedProgram, values: Mapping[str, Tensor]) -> ExportedProgram:
    """A program of the same graph with other values of some of its tensors; the rest is shared with it.

    Args:
        exported: not changed.
        values: by the name of the parameter, buffer or constant; shape and dtype as before.
    """
    state = dict(exported.state_dict)
    held = dict(exported.constants)
    for name, value in values.items():
        if name in state:
            state[name] = like(state[name], value)
        else:
            held[name] = value
    other = copy.copy(exported)  # the graph is shared: a copy of it would rename inputs that are called as a builtin is, "input"
    other._state_dict, other._constants = state, held
    return other
