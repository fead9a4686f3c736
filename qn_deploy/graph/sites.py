"""The weights of a graph: which of its tensors an operator reads as a weight, and who else reads them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from qn_deploy.graph.lifted import constants
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
    """

    name: str
    node: Node
    value: Tensor
    readers: tuple[Node, ...]
    others: tuple[Node, ...] = ()

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
    return str(getattr(node.target, "overloadpacket", node.target).__name__)  # type: ignore[union-attr]


def weights(exported: ExportedProgram) -> list[Weight]:
    """The weights of a graph, in the order of their first readers."""
    found = []
    order = {node: index for index, node in enumerate(exported.graph.nodes)}
    for node, (name, value) in constants(exported).items():
        users = sorted(node.users, key=order.__getitem__)
        readers = tuple(user for user in users if node in weights_of(user))
        if readers:
            others = tuple(user for user in users if user not in readers or user.all_input_nodes.count(node) > 1)
            found.append(Weight(name, node, value.detach(), readers, others))
    return sorted(found, key=lambda weight: order[weight.readers[0]])
