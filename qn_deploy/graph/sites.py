"""The weights of a graph: which of its tensors an operator reads as a weight, and who else reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from qn_deploy.graph.lifted import Constant, constants
from qn_deploy.graph.operators import Kind, Operator, operator_of, weights_of


@dataclass(frozen=True)
class Weight:
    """A tensor that operators read as their weight: one place in the graph, one reader or, if it is tied, several.

    Attributes:
        name: of the parameter, buffer or constant.
        node: its placeholder.
        value: the tensor.
        readers: the nodes that read it as a weight, in the order of the graph.
        others: the nodes that read it in another way.
        bias: the placeholder and tensor that its one reader adds, and nobody else reads; None if there is none.
    """

    name: str
    node: Node
    value: Tensor
    readers: tuple[Node, ...]
    others: tuple[Node, ...] = ()
    bias: tuple[Node, Constant] | None = None

    @property
    def operators(self) -> tuple[Operator, ...]:
        """The rows of the table of operators, of each reader."""
        return tuple(row for reader in self.readers if (row := operator_of(reader)) is not None)

    @property
    def kernel(self) -> tuple[int, ...] | None:
        """Kernel size of the convolution that reads it first; None for any other operator."""
        kind = self.operators[0].kind
        return tuple(self.value.shape[2:]) if kind in (Kind.CONVOLUTION, Kind.TRANSPOSED) else None


def operator_name(node: Node) -> str:
    """The name of a node's operator, without namespace and overload: "conv2d"."""
    target: Any = node.target
    return str(getattr(target, "overloadpacket", target).__name__)


def weights(exported: ExportedProgram) -> list[Weight]:
    """The weights of a graph, in the order of their first readers."""
    found = []
    order = {node: index for index, node in enumerate(exported.graph.nodes)}
    held = constants(exported)
    for node, (name, value) in held.items():
        users = sorted(node.users, key=order.__getitem__)
        readers = tuple(user for user in users if node in weights_of(user))
        if readers:
            others = tuple(user for user in users if user not in readers or user.all_input_nodes.count(node) > 1)
            found.append(Weight(name, node, value.detach(), readers, others, _bias(readers, held)))
    return sorted(found, key=lambda weight: order[weight.readers[0]])


def _bias(readers: Sequence[Node], held: Mapping[Node, Constant]) -> tuple[Node, Constant] | None:
    operator = operator_of(readers[0])
    if len(readers) > 1 or operator is None or operator.bias is None or len(readers[0].args) <= operator.bias:
        return None
    node = readers[0].args[operator.bias]
    return (node, held[node]) if isinstance(node, Node) and node in held and len(node.users) == 1 else None
