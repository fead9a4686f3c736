"""One interpretation of a graph, in which the values of all batches move forward together, in the float model and in the compressed one.

Both are one value for as long as no constant was replaced before it. A value that no later node reads is dropped at once; what waits for a
later stretch of the walk is kept by a `Spool`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg

from qn_deploy.graph.lifted import constants, like
from qn_deploy.graph.spool import Spool
from qn_deploy.memory import give_back

See = Callable[[Node, Any], None]
Differ = Callable[[Node, Any, Any], None]
OURS, THEIRS = 0, 1  # the compressed model's value, and the float model's


class Walk:
    """Values at a place in the graph. It begins before the first node.

    Args:
        exported: a graph without operators that write into their inputs; constants are read from it.
        batches: each a tuple with one tensor for each input; their sizes may differ.
        limit: bytes of values between two stretches that are held in memory; what is over it lies in temporary files.
        see: called with each value of the compressed model when it is computed: with a node of the graph, inputs too, and the value of each
            batch, or the one value of a node that no input reaches.
        differ: called with a node whose values of a batch may differ in the two models: the compressed model's, and the float model's.
    """

    def __init__(
        self,
        exported: ExportedProgram,
        batches: Sequence[Sequence[Tensor]],
        limit: int = 1 << 30,
        see: See | None = None,
        differ: Differ | None = None,
    ) -> None:
        self._module, self._see = exported.graph_module, see or (lambda node, value: None)
        self._differ = differ or (lambda node, ours, theirs: None)
        self._nodes = list(exported.graph.nodes)
        self._place = {node: index for index, node in enumerate(self._nodes)}
        self._last = {source: node for node in self._nodes for source in node.all_input_nodes}
        self._count = len(batches)
        self._spool = Spool(limit)
        self._fixed: dict[Node, tuple[Any, Any]] = {node: (value, value) for node, (_, value) in constants(exported).items()}
        self._replaced: set[Node] = set()  # nodes with two values
        self._next = 0
        inputs = [node for node in self._nodes if node.op == "placeholder" and node not in self._fixed]
        self._inputs = [dict(zip(inputs, batch, strict=True)) for batch in batches]

    def until(self, node: Node) -> None:
        """Computes everything before a node, in the order of the graph."""
        stretch = self._nodes[self._next : self._place[node]]
        self._next = self._place[node]
        moving = [later for later in stretch if self._moves(later)]
        with torch.no_grad():
            for batch in range(self._count):
                self._advance(moving, batch)
        give_back()
        for gone in {source for later in stretch for source in later.all_input_nodes if self._is_last(source)}:
            self._fixed.pop(gone, None)

    def replace(self, node: Node, value: Tensor) -> None:
        """From here on the compressed model reads another value of a constant."""
        theirs = self._fixed[node][THEIRS]
        self._fixed[node] = (like(theirs, value), theirs)
        self._replaced.add(node)

    def values(self, node: Node) -> Iterator[tuple[Any, Any]]:
        """(the compressed model's, the float model's) value of each batch, of a node that a later one reads."""
        for batch in range(self._count):
            if node in self._fixed:
                yield self._fixed[node]
            else:
                ours = self._spool.get((node, OURS), batch)
                yield ours, self._spool.get((node, THEIRS), batch) if node in self._replaced else ours

    def _moves(self, node: Node) -> bool:
        """Computes a node that no input reaches, at once; True if it has to be computed for each batch."""
        sources = node.all_input_nodes
        if any(source in self._replaced for source in sources):
            self._replaced.add(node)
        if node in self._fixed:
            return False
        if node.op == "placeholder" or any(source not in self._fixed for source in sources):
            return True
        with torch.no_grad():
            ours = self._computed(node, lambda source: self._fixed[source][OURS])
            theirs = self._computed(node, lambda source: self._fixed[source][THEIRS]) if node in self._replaced else ours
        self._fixed[node] = (ours, theirs)
        self._see(node, ours)
        return False

    def _advance(self, stretch: list[Node], batch: int) -> None:
        """Computes these nodes for one batch."""
        here: dict[tuple[Node, int], Any] = {}

        def value(source: Node, side: int) -> Any:
            if source in self._fixed:
                return self._fixed[source][side]
            side = side if source in self._replaced else OURS
            if (source, side) not in here:
                here[source, side] = self._spool.get((source, side), batch, last=self._is_last(source))
            return here[source, side]

        for node in stretch:
            sides = (OURS, THEIRS) if node in self._replaced else (OURS,)
            for side in sides:
                if node.op == "placeholder":
                    here[node, side] = self._inputs[batch].pop(node)
                else:
                    here[node, side] = self._computed(node, partial(value, side=side))
            self._see(node, here[node, OURS])
            if THEIRS in sides:
                self._differ(node, here[node, OURS], here[node, THEIRS])
            if not self._is_last(node):  # a later stretch reads it
                for side in sides:
                    self._spool.put((node, side), batch, here[node, side])
            for gone in (node, *node.all_input_nodes):
                if self._last.get(gone, gone) is node:
                    for side in (OURS, THEIRS):
                        here.pop((gone, side), None)

    def _computed(self, node: Node, value: Callable[[Node], Any]) -> Any:
        if node.op == "get_attr":  # a graph inside the graph
            return self._module.get_submodule(str(node.target))
        return node.target(*map_arg(node.args, value), **map_arg(node.kwargs, value))  # type: ignore[operator]

    def _is_last(self, source: Node) -> bool:
        """True if no node at or after this place reads a value."""
        reader = self._last.get(source)
        return reader is None or self._place[reader] < self._next


def outputs(exported: ExportedProgram, batches: Iterable[Sequence[Tensor]], limit: int = 1 << 30) -> list[tuple[Tensor, ...]]:
    """What the graph returns for each batch."""
    walk = Walk(exported, list(batches), limit)
    [last] = exported.graph.find_nodes(op="output")
    walk.until(last)
    found = [walk.values(node) for node in last.args[0]]
    return [tuple(ours for ours, _ in each) for each in zip(*found, strict=True)]
