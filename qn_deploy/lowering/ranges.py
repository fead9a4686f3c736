"""From the range of a value to the scale and zero point of its int8 steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from math import isfinite

import torch
from torch.fx import GraphModule, Node

from qn_deploy.errors import InputError
from qn_deploy.graph.constants import constant
from qn_deploy.graph.operators import Kind, kind_of, weights_of
from qn_deploy.program.program import Program, Range

STEPS = 255  # from -128 to 127
LEAST = 2.0**-60  # a scale: two of them multiplied are a normal float32 still, which all kernels ask for


def width(bounds: Range) -> float:
    """From the least to the greatest value; zero counts, as every int8 range holds it."""
    low, high = bounds
    return max(high, 0.0) - min(low, 0.0)


def union(one: Range, other: Range) -> Range:
    """The range that holds both."""
    return min(one[0], other[0]), max(one[1], other[1])


def with_ranges(program: Program) -> tuple[GraphModule, dict[Node, Range]]:
    """The program's graph as a module of its own, and the ranges of its values; torch renames nodes on the way there.

    A constant that an operator moves to where a layer reads it was never computed, so calibration saw nothing of it: it has its own range.
    """
    graph_module = program.exported.module(check_guards=False)
    calls = [node.name for node in program.exported.graph.nodes if node.op == "call_function"]
    values = [*graph_module.graph.find_nodes(op="placeholder"), *(node for node in graph_module.graph.nodes if node.op == "call_function")]
    known = {node: program.ranges[name] for name, node in zip((*program.inputs, *calls), values, strict=True) if name in program.ranges}
    return graph_module, known | _of_constants(graph_module)


def _of_constants(graph_module: GraphModule) -> dict[Node, Range]:
    """The ranges of the float constants that are more than weights."""
    found = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        value = constant(graph_module, node) if any(node not in weights_of(reader) for reader in node.users) else None
        if value is not None and value.is_floating_point() and value.numel():
            low, high = value.aminmax()
            found[node] = low.item(), high.item()
    return found


class Ranges:
    """The ranges of a graph's values.

    A value that an operator only moves has the range of another: `share` says so.
    """

    def __init__(self, known: Mapping[Node, Range]) -> None:
        self._known = known
        self._roots: dict[Node, Node] = {}
        self._unions: dict[Node, Range] = {}

    def __getitem__(self, node: Node) -> Range:
        """A value's own range; what an operator only moves or picks has the range of its inputs, and needs none of its own.

        Raises:
            InputError: it has none, or an infinite one.
        """
        while node not in self._known and kind_of(node) in (Kind.SHAPE, Kind.POOL):
            node = node.args[0]  # type: ignore[assignment]
        if node not in self._known and kind_of(node) is Kind.CONCATENATION:
            return reduce(union, (self[part] for part in node.args[0]))  # type: ignore[index, union-attr]
        if node not in self._known:
            raise InputError(
                f"{node.name} has no range for static int8 activations; calibrate the program again with qn_deploy.calibrate(program, "
                "batches), or export with --calibrate data.npz"
            )
        low, high = self._known[node]
        if not (isfinite(low) and isfinite(high)):
            raise InputError(
                f"{node.name} reached {low:g} to {high:g} while the program was calibrated, which no int8 range holds; leave the weights "
                "that read it float in the recipe, or export with --activations none"
            )
        return low, high

    def share(self, one: Node, other: Node) -> None:
        """Gives two values one range, which holds both."""
        first, second = self.root(one), self.root(other)
        bounds = union(self.shared(one), self.shared(other))
        if first is not second:
            self._roots[second] = first
        self._unions[first] = bounds

    def root(self, node: Node) -> Node:
        """The value that stands for all that share one range with `node`."""
        while node in self._roots:
            node = self._roots[node]
        return node

    def shared(self, node: Node) -> Range:
        """A value's range, which may hold others."""
        root = self.root(node)
        return self._unions[root] if root in self._unions else self[root]


def scale_of(bounds: Range, least: float = LEAST) -> float:
    """The float32 step with which a range has 255; `least` if it would be smaller. A range of zero alone takes any."""
    size = width(bounds)
    step = torch.tensor(size / STEPS if size else 1 / STEPS, dtype=torch.float32)
    return max(step.item(), torch.tensor(least, dtype=torch.float32).item())


def zero_of(bounds: Range, scale: float) -> int:
    """The step that stands for zero, from -128 to 127."""
    return max(-128, min(127, -128 - round(min(bounds[0], 0.0) / scale)))
