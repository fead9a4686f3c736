"""Which values of a graph are int8: read off the table of operators and the ranges of the values.

An operator that the runtimes compute in int8 reads int8 values, and what it computes is one. Layers do so wherever their weight is
compressed, and quantize a float that they read. Every other operator only goes on with what is int8 already, and only where something reads
its result as int8 in the end: in float it is more exact, and a step of rounding saved.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from qn_deploy.graph.operators import LAYERS, PAIRS, Kind, kind_of, operator_of
from qn_deploy.lowering.ranges import Ranges, width

_aten = torch.ops.aten
RELUS = (_aten.relu.default,)
_MOVES = (Kind.SHAPE, Kind.POOL)
_PADS = (_aten.pad.default, _aten.constant_pad_nd.default)
# XNNPACK's kernels take the scale of a term of a sum, as a part of the sum's, from 2**-10 to 2**8, and that of a product, the two factors'
# multiplied, from 2**-16 to 2**8. What comes near these limits vanishes in a step of the result, or of the term: it is left to floats.
_LEAST_TERM, _LEAST_PRODUCT, _MOST = 2.0**-7, 2.0**-12, 2.0**6
_CLOSE = 4.0  # as many times as wide a range costs its values two bits


@dataclass
class Placement:
    """What is int8 in a graph.

    Attributes:
        reads: of each operator that computes in int8, what it reads as int8.
        values: what is quantized where it is made: results of these operators, or of a clamp that is computed along with one.
        shared: pairs of values that have one range.
    """

    reads: dict[Node, tuple[Node, ...]] = field(default_factory=dict)
    values: set[Node] = field(default_factory=set)
    shared: list[tuple[Node, Node]] = field(default_factory=list)


def place(graph: Graph, compressed: Collection[str], ranges: Ranges) -> Placement:
    """Decides what is int8.

    Args:
        graph: of a program, its constants read by get_attr.
        compressed: names of the weights that have an int8 form.
        ranges: of its values.

    Raises:
        InputError: a value that decides it has no range.
    """
    able = _able(graph, compressed, ranges)
    placement = Placement()
    for node in reversed(list(graph.nodes)):  # readers first
        if node not in able or not (_always(node) or _is_wanted(node, placement)):
            continue
        placement.reads[node] = operands(node)
        placement.values.add(joined_clamp(node) or node)
        placement.shared += _shared(node, ranges)
    return placement


def operands(node: Node) -> tuple[Any, ...]:
    """What an operator computes with: its arguments without weight, bias and options."""
    if kind_of(node) is Kind.CONCATENATION:
        return tuple(node.args[0])  # type: ignore[arg-type]
    return node.args[:2] if node.target in PAIRS else node.args[:1]


def joined_clamp(node: Node) -> Node | None:
    """The clamp that runtimes compute together with a layer, a sum or a product: its only reader. None if there is none."""
    if len(node.users) != 1 or node.target not in LAYERS | PAIRS:
        return None
    (reader,) = node.users
    joins = reader.target in RELUS if node.target in PAIRS else kind_of(reader) is Kind.CLAMP
    return reader if joins else None


def is_global_mean(node: Node) -> bool:
    """True for the mean over height and width in the form that both runtimes compute in int8."""
    source: Any = node.args[0] if node.args else None
    size: Any = node.args[1] if len(node.args) > 1 else ()
    is_global = node.target is _aten.adaptive_avg_pool2d.default and list(size) == [1, 1]
    return is_global and source.meta["val"].ndim == 4


def is_float(node: Any) -> bool:
    """True for a node that makes one float32 tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _able(graph: Graph, compressed: Collection[str], ranges: Ranges) -> set[Node]:
    """The operators that could compute in int8 with what they read, and the inputs, which can be quantized as they come in."""
    able: set[Node] = set()
    joined: set[Node] = set()
    for node in graph.nodes:
        if not is_float(node):
            continue
        if node.op == "placeholder" or (
            node.op == "call_function" and node not in joined and _computes(node, able | joined, compressed, ranges)
        ):
            able.add(node)
            if node.op != "placeholder" and (clamp := joined_clamp(node)) is not None:
                joined.add(clamp)
    return able


def _computes(node: Node, int8: set[Node], compressed: Collection[str], ranges: Ranges) -> bool:
    operator = operator_of(node)
    if operator is None or not operator.int8:
        return False
    if node.target in LAYERS:
        return is_float(node.args[0]) and getattr(node.args[1], "target", None) in compressed
    if not all(isinstance(source, Node) and source in int8 for source in operands(node)):
        return False
    if node.target in PAIRS:
        return not node.kwargs and _fits(node, ranges)
    if operator.kind is Kind.MEAN:
        return is_global_mean(node) and width(ranges[node]) * 255 > width(ranges[operands(node)[0]])
    return node.target not in _PADS or _pads_zeros(node)


def _fits(node: Node, ranges: Ranges) -> bool:
    """True if the scales of a sum or product are within what the kernels take, and no term vanishes."""
    one, other = (width(ranges[source]) for source in operands(node))
    result = width(ranges[joined_clamp(node) or node])
    if kind_of(node) is Kind.ADDITION:
        return result > 0 and all(_LEAST_TERM < term / result < _MOST for term in (one, other))
    return result > 0 and _LEAST_PRODUCT < one * other / 255 / result < _MOST


def _pads_zeros(node: Node) -> bool:
    """True if a pad adds zeros, which every range holds."""
    options = dict(enumerate(node.args))
    mode = options.get(2, "constant") if node.target is _aten.pad.default else "constant"
    value = node.kwargs.get("value", options.get(3 if node.target is _aten.pad.default else 2))
    return bool(mode == "constant" and not value)


def _always(node: Node) -> bool:
    """True for what is worth computing in int8 whatever reads the result."""
    if node.op == "placeholder" or operands(node)[0].op == "placeholder":
        return node.target in LAYERS
    return node.target in LAYERS or kind_of(node) in (Kind.MEAN, Kind.POOL) or node.target in _PADS


def _is_wanted(node: Node, placement: Placement) -> bool:
    """True if something reads the result as int8, or it is a sum or product that the program returns."""
    value = joined_clamp(node) or node
    returned = node.target in PAIRS and any(reader.op == "output" for reader in value.users)
    return node.op == "call_function" and (returned or any(value in placement.reads.get(reader, ()) for reader in value.users))


def _shared(node: Node, ranges: Ranges) -> list[tuple[Node, Node]]:
    """The pairs of values that have one range because of an operator."""
    kind, sources = kind_of(node), operands(node)
    if kind in _MOVES or kind is Kind.CLAMP:
        return [(node, sources[0])]
    if kind is Kind.CONCATENATION:  # a part that is read elsewhere keeps a much smaller range of its own
        return [(node, part) for part in sources if len(part.users) == 1 or width(ranges[node]) <= _CLOSE * width(ranges[part])]
    return []
