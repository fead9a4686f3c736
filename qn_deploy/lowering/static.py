"""Static activations: quantize and dequantize around each value that is int8, by its range, and what runtimes need to compute the same.

`placement.py` says which values are int8 and which share a range. Here each gets one quantize and a dequantize for each reader, output
scales are settled (`settle.py`), and biases go on their int32 grid.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from qn_deploy.graph.operators import LAYERS, Kind, kind_of
from qn_deploy.lowering.insert import buffer
from qn_deploy.lowering.placement import Placement, joined_clamp, place
from qn_deploy.lowering.ranges import LEAST, Ranges, scale_of, zero_of
from qn_deploy.lowering.settle import is_quantized, settle
from qn_deploy.program.program import Range
from qn_deploy.weights.compressed import CompressedWeight

_decomposed = torch.ops.quantized_decomposed
_LIMITS = -128, 127, torch.int8
_LARGEST_BIAS = 2.0**30  # in steps of the int32 sums that it is added to
_LEAST_OUTPUT = 2.0**-7  # of a step of these sums: kernels scale them by less than 2**8


def quantize_activations(graph_module: GraphModule, weights: Mapping[str, CompressedWeight], known: Mapping[Node, Range]) -> None:
    """Puts a quantize and dequantizes around each activation that runtimes compute in int8.

    Args:
        graph_module: it is changed; its weights are still float.
        weights: the compressed form of those that have one, by name.
        known: ranges of its values.

    Raises:
        InputError: a value that has to be int8 has no range, or an infinite one.
    """
    graph = graph_module.graph
    ranges = Ranges(known)
    placement = place(graph, weights, ranges)
    for one, other in placement.shared:
        ranges.share(one, other)
    _insert(graph, placement, _grids(graph_module, placement, ranges, weights))
    settle(graph)
    _separate_biases(graph_module)


Grids = dict[Node, tuple[float, int]]  # scale and zero point of each value that is quantized


def _grids(graph_module: GraphModule, placement: Placement, ranges: Ranges, weights: Mapping[str, CompressedWeight]) -> Grids:
    least: dict[Node, float] = {}  # by the value that stands for those of one range
    scales: dict[Node, float] = {}

    def raise_to(value: Node, scale: float) -> None:
        root = ranges.root(value)
        least[root] = max(least.get(root, LEAST), scale)
        scales[root] = scale_of(ranges.shared(root), least[root])

    for node, sources in placement.reads.items():
        for value in (*sources, joined_clamp(node) or node):
            raise_to(value, LEAST)
        if node.target in LAYERS:
            raise_to(sources[0], _least_input(graph_module, node, weights[str(node.args[1].target)]))  # type: ignore[union-attr]
    for node in graph_module.graph.nodes:  # in this order, as the scale of a layer's output depends on its input's
        if node in placement.reads and node.target in LAYERS:
            sums = scales[ranges.root(node.args[0])] * weights[node.args[1].target].scale.max().item()
            raise_to(joined_clamp(node) or node, sums * _LEAST_OUTPUT)
    values = {value for sources in placement.reads.values() for value in sources} | placement.values
    roots = {value: ranges.root(value) for value in sorted(values)}  # in the graph's order, so that the same program gives the same bytes
    return {value: (scales[root], zero_of(ranges.shared(root), scales[root])) for value, root in roots.items()}


def _least_input(graph_module: GraphModule, layer: Node, weight: CompressedWeight) -> float:
    """The least scale of a layer's input that keeps its bias within the int32 sums; what is smaller does not count beside the bias."""
    bias: Any = layer.args[2] if len(layer.args) > 2 else None
    if bias is None or bias.op != "get_attr":
        return LEAST
    steps = operator.attrgetter(bias.target)(graph_module).detach().abs() / weight.scale
    return float(steps.max()) / _LARGEST_BIAS


def _insert(graph: Graph, placement: Placement, grids: Grids) -> None:
    for value, grid in grids.items():
        readers = list(value.users)
        behind = value.next
        while behind.op == "placeholder":
            behind = behind.next
        with graph.inserting_before(behind):
            quantized = graph.call_function(_decomposed.quantize_per_tensor.default, (value, *grid, *_LIMITS))
        for reader in readers:
            reads = value in placement.reads.get(reader, ())
            if reads or value in placement.values:  # a float operator goes on with the float that it has
                with graph.inserting_before(reader):
                    wanted = grids[reader] if reads and kind_of(reader) is Kind.CONCATENATION else grid
                    reader.replace_input_with(value, _dequantized(graph, quantized, grid, wanted))


def _dequantized(graph: Graph, quantized: Node, grid: tuple[float, int], wanted: tuple[float, int]) -> Node:
    """A dequantize of its own for a reader: XNNPACK can't both return a result and go on with it. On another grid if that is `wanted`."""
    quantize, dequantize = _decomposed.quantize_per_tensor.default, _decomposed.dequantize_per_tensor.default
    floats = graph.call_function(dequantize, (quantized, *grid, *_LIMITS))
    if wanted == grid:
        return floats
    steps = graph.call_function(quantize, (floats, *wanted, *_LIMITS))
    return graph.call_function(dequantize, (steps, *wanted, *_LIMITS))


def _separate_biases(graph_module: GraphModule) -> None:
    """Gives each call of a layer a bias of its own: ExecuTorch quantizes a bias once, by the input scale of the first call."""
    calls: Counter[str] = Counter()
    for node in graph_module.graph.nodes:
        bias = node.args[2] if node.target in LAYERS and len(node.args) > 2 else None
        if bias is None or bias.op != "get_attr":
            continue
        name = str(bias.target)
        if calls[name]:
            value = operator.attrgetter(name)(graph_module).detach().clone()
            with graph_module.graph.inserting_before(node):
                node.replace_input_with(bias, buffer(graph_module, f"{name}_{calls[name]}", value))
        calls[name] += 1


def snap_biases(graph_module: GraphModule, weights: dict[str, CompressedWeight]) -> None:
    """Puts each bias of an int8 layer on its int32 grid, s_x * s_w.

    Runtimes round it there, one by division and one by multiplication with the reciprocal, and do not always meet.
    """
    for node in graph_module.graph.nodes:
        if node.target not in LAYERS or len(node.args) < 3 or getattr(node.args[2], "op", None) != "get_attr":
            continue
        x, weight, bias = node.args[:3]
        values = weight.args[0].target if weight.args else None  # a float weight comes from nowhere
        if is_quantized(x) and values in weights:
            scale = torch.tensor(x.args[1], dtype=torch.float32) * weights[values].scale
            value = operator.attrgetter(bias.target)(graph_module).detach()
            with graph_module.graph.inserting_before(node):
                node.replace_input_with(bias, buffer(graph_module, f"{bias.target}_snapped", (value / scale).round() * scale))
