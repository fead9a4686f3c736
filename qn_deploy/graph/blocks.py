"""A graph cut into blocks of layers, at places where one value carries all that certain constants have done before."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Graph, GraphModule, Node

_CONSTANT, _INPUT, _OUTPUT = "get_attr", "placeholder", "output"


@dataclass(frozen=True)
class Block:
    """A stretch of a graph.

    Attributes:
        module: takes the inputs, gives a tuple of the outputs; its parameters and buffers are those of the graph, under the same names.
        inputs: names of the values, computed before it or given by the user, that it reads.
        outputs: names of the values in it that later blocks read, or that the graph returns.
        own: names of the constants that no other block reads.
    """

    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    own: frozenset[str]


def blocks(whole: GraphModule, names: Collection[str], least: int) -> list[Block]:
    """Cuts a graph; run one after the other, the blocks compute what it does.

    Between residual blocks one value is all that goes on, inside of one it is more. So the cuts fall where networks have their blocks; in a
    chain of layers, each layer could be one. A cut lies as late as it can, behind activations and norms.

    Args:
        whole: holds its constants (`unlifted`); not changed, its tensors are shared.
        names: of constants, weights for example.
        least: how many of them the block reads first, at least, but for the last block.
    """
    nodes = [node for node in whole.graph.nodes if node.op not in (_CONSTANT, _INPUT, _OUTPUT)]
    touched = _touched(nodes, names)
    begin, parts = 0, []
    for end in _ends(nodes, touched, names, least):
        parts.append(nodes[begin:end])
        begin = end
    return [_block(whole, part) for part in parts]


def _touched(nodes: Sequence[Node], names: Collection[str]) -> set[Node]:
    """What depends on the constants."""
    found: set[Node] = set()
    for node in nodes:
        if any(source in found or (source.op == _CONSTANT and source.target in names) for source in node.all_input_nodes):
            found.add(node)
    return found


def _ends(nodes: Sequence[Node], touched: set[Node], names: Collection[str], least: int) -> list[int]:
    """Where blocks end, the last one too."""
    place = {node: index for index, node in enumerate(nodes)}
    last = {node: max((place[user] for user in node.users if user in place), default=-1) for node in nodes}
    found: list[int] = []
    seen: set[str] = set()
    live: set[Node] = set()
    count, candidate = 0, 0  # constants since the last cut; the last place where one could be
    for index, node in enumerate(nodes):
        fresh = {str(source.target) for source in node.all_input_nodes if source.op == _CONSTANT and source.target in names} - seen
        if fresh and candidate:
            found.append(candidate)
            count, candidate = 0, 0
        count, seen = count + len(fresh), seen | fresh
        live = {value for value in live | ({node} & touched) if last[value] > index}
        if count >= least and len(live) == 1 and all(_is_float(value) for value in live):
            candidate = index + 1
    return [*found, len(nodes)]


def _block(whole: GraphModule, nodes: Sequence[Node]) -> Block:
    inside = set(nodes)
    sources = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside)
    constants = [source for source in sources if source.op == _CONSTANT]
    inputs = [source for source in sources if source.op != _CONSTANT]
    outputs = [node for node in nodes if any(user not in inside for user in node.users)]
    graph = Graph()
    copies = {source: graph.placeholder(source.name) for source in inputs}
    for node in (*constants, *nodes):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    readers: dict[str, bool] = {}  # constant: only this block reads it
    for node in whole.graph.nodes:
        if node.op == _CONSTANT:
            readers[str(node.target)] = readers.get(str(node.target), True) and set(node.users) <= inside
    return Block(
        GraphModule(whole, graph),
        tuple(node.name for node in inputs),
        tuple(node.name for node in outputs),
        frozenset(str(node.target) for node in constants if readers[str(node.target)]),
    )


def _is_float(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()
