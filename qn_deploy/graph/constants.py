"""Constants of an unlifted graph: reading them, making new ones, and computing once what depends on nothing else."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qn_deploy.graph.operators import operator_of, weights_of

_aten = torch.ops.aten
_PARAMETRIZATION = re.compile(r"\.?parametrizations\.\w+\.(original\d*|\d+\..+)$")  # what it keeps, or a tensor of its own
_GROWTH = 1 << 16  # elements that a computed constant may have beyond those that it was made from


def constant(graph_module: GraphModule, node: Any) -> Tensor | None:
    """The tensor that a node reads, detached; None if it reads no constant."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = operator.attrgetter(str(node.target))(graph_module)
    return value.detach() if isinstance(value, Tensor) else None


def add_constant(graph_module: GraphModule, name: str, value: Tensor, reader: Node | None = None) -> Node:
    """A node that reads the new constant `name`, or `name_1`, `name_2`, ... if the graph goes on reading another one of that name.

    Args:
        graph_module: it is changed; the node stands where its graph inserts.
        name: dotted; modules on the way are made.
        value: a parameter is made of a float tensor, a buffer of any other.
        reader: what reads the new constant instead of the old one.
    """
    others = {node.target for node in graph_module.graph.nodes if node.op == "get_attr" and node.users.keys() - {reader}}
    target = _store(graph_module, name, value, others)
    node = graph_module.graph.get_attr(target)
    node.meta["val"] = value
    return node


def _store(graph_module: GraphModule, name: str, value: Tensor, read: set[Any]) -> str:
    free = next(each for each in chain((name,), (f"{name}_{index}" for index in count(1))) if each not in read)
    value = value.detach().contiguous()
    put_constant(graph_module, free, nn.Parameter(value) if value.is_floating_point() else value)
    return free


def put_constant(root: nn.Module, name: str, value: Tensor) -> None:
    """Keeps a tensor under a dotted name, instead of what has that name; modules on the way are made."""
    path, _, leaf = name.rpartition(".")
    owner = root
    for part in path.split(".") if path else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if hasattr(owner, leaf):
        delattr(owner, leaf)
    if isinstance(value, nn.Parameter):
        owner.register_parameter(leaf, value)
    else:
        owner.register_buffer(leaf, value)


def owner_of(name: str) -> str:
    """The module path that a parameter's name begins with; a parametrization belongs to the module that carries it."""
    owner, found = _PARAMETRIZATION.subn("", name)
    return owner if found else name.rpartition(".")[0]


@torch.no_grad()
def fold_constants(graph_module: GraphModule) -> None:
    """Computes each value that depends on parameters and buffers alone, and stores it as a constant, unless it is much larger than these.

    A normalised weight (weight_norm, spectral_norm, w / w.norm()) becomes the weight that its layer reads; it is named after the module of
    the parameters that it was made from.
    """
    graph = graph_module.graph
    values: dict[Node, Tensor | Sequence[Tensor]] = {}  # several where a parameter is split into parts
    sources: dict[Node, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and (value := constant(graph_module, node)) is not None:
            values[node], sources[node] = value, (str(node.target),)
        elif node.op == "call_function" and node.all_input_nodes and all(source in values for source in node.all_input_nodes):
            result = _computed(node, values)
            read = dict.fromkeys(name for source in node.all_input_nodes for name in sources[source])
            held = sum(operator.attrgetter(name)(graph_module).numel() for name in read)
            if result is not None and sum(part.numel() for part in _parts(result)) <= held + _GROWTH:
                values[node], sources[node] = result, tuple(read)
    new = []
    for node, whole in values.items():
        if node.op != "call_function" or not isinstance(whole, Tensor) or all(user in values for user in node.users):
            continue
        name = _name(node, sources[node])
        with graph.inserting_before(node):
            folded = graph.create_node("get_attr", name)  # stored below, when it is known which names are free
        folded.meta["val"] = whole.clone()
        new.append(folded)
        node.replace_all_uses_with(folded)
    for node in reversed([*values]):
        if not node.users:
            graph.erase_node(node)
    taken = {node.target for node in graph.nodes if node.op == "get_attr" and node not in new}
    for node in new:
        node.target = _store(graph_module, str(node.target), node.meta["val"], taken)
        taken.add(node.target)


def _computed(node: Node, values: dict[Node, Tensor | Sequence[Tensor]]) -> Tensor | Sequence[Tensor] | None:
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if all(isinstance(part, Tensor) for part in _parts(result)) else None


def _parts(value: Any) -> Sequence[Any]:
    return value if isinstance(value, tuple | list) else (value,)


def _name(node: Node, sources: tuple[str, ...]) -> str:
    """Named after the one module of its sources and the role that it has for its reader; after its own node otherwise."""
    owners = {owner_of(name) for name in sources}
    reader = next(iter(node.users))
    row = operator_of(reader)
    if len(sources) == 1 and ".original" not in sources[0]:
        return sources[0]
    if len(owners) == 1:
        is_bias = row is not None and row.bias is not None and len(reader.args) > row.bias and reader.args[row.bias] is node
        leaf = "weight" if node in weights_of(reader) else "bias" if is_bias else node.name
        return f"{owners.pop()}.{leaf}".lstrip(".")
    return f"{node.name}.weight"
