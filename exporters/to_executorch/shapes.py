"""Operators rewritten as ExecuTorch and XNNPACK take them, above all those that only change shapes. No value changes.

XNNPACK computes a part of the graph at a time, and each operator that it leaves out cuts a part in two: more to store, more to copy at run
time. With a dynamic batch it would leave out most of what a Transformer does between its products. A weight that it would have to keep in
several orders becomes several.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import make_contiguous_strides_for
from torch.export import ExportedProgram, default_decompositions
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true, sym_eq
from torch.fx.passes.infra.pass_base import PassResult

from qn_deploy.graph.lifted import constants

_Q, _aten = torch.ops.quantized_decomposed, torch.ops.aten


def core_operators(exported: ExportedProgram, kept: Iterable[Any]) -> ExportedProgram:
    """The graph in core ATen operators, with slices for each split that would fix a dynamic size, or that XNNPACK takes in slices only, and
    the formula of each GELU by tanh, for which XNNPACK computes the exact GELU: up to 4.7e-4 away.

    Softplus and Mish are formulas in which a part of XNNPACK's does not give a dequantized value away and compute with it as well: their
    channels would come out in another order.

    ExecuTorch's check of a graph asks each operator that returns a list for the length of its first tensor, instead of the list's, and so
    fixes that tensor's first dimension, mostly the batch, at the example's. A GRU's gates are split.

    Args:
        exported: it is not changed.
        kept: composite operators that stay as they are.
    """
    table: Any = default_decompositions()
    for operator in kept:
        table.pop(operator, None)
    table[_aten.split_with_sizes.default] = _slices
    table[_aten.gelu.default] = _gelu
    table[_aten.softplus.default] = _softplus
    table[_aten.mish.default] = _mish
    sliced: ExportedProgram = exported.run_decompositions(table)
    return sliced


def _slices(x: Tensor, sizes: list[int], dim: int = 0) -> Any:
    if isinstance(x.shape[0], int) and not all(isinstance(size, int) for size in x.shape):
        return NotImplemented  # the split stays: it does no harm here, and XNNPACK slices nothing that is dynamic
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
    return [_aten.slice.Tensor(x, dim, end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _gelu(x: Tensor, *, approximate: str = "none") -> Any:
    if approximate != "tanh":
        return NotImplemented
    inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
    return x * 0.5 * (torch.tanh(inner) + 1.0)


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """With one reader of x."""
    scaled = x * beta
    return torch.where(scaled > threshold, scaled, torch.log1p(torch.exp(scaled))) / beta


def _mish(x: Tensor) -> Tensor:
    """As x * tanh(log(1 + e)) for e = exp(x); from 20 on that is x."""
    e = torch.exp(x.clamp(max=20.0))
    ratio = e * (e + 2.0)
    return x * (ratio / (ratio + 2.0))


def separate_weights(exported: ExportedProgram) -> None:
    """Gives each order in which convolutions read a weight a constant of its own, and each convolution of one dimension too.

    In a delegate XNNPACK keeps a constant once, in the order that its first reader asks for, and the others would compute with that; and it
    adds a dimension to a weight for each convolution of one dimension that reads it. In the file constants of the same bytes are one.

    Args:
        exported: in core ATen operators; it is changed.
    """
    held = constants(exported)
    kept: dict[Node, dict[Any, Node]] = {weight: {} for weight in held}
    for node in exported.graph.find_nodes(op="call_function", target=_aten.convolution.default):
        reader, weight = node, node.args[1]
        if weight.target in (_Q.dequantize_per_tensor.default, _Q.dequantize_per_channel.default):
            reader, weight = weight, weight.args[0]
        if weight not in held:
            continue
        transposed, groups = node.args[6], node.args[8]
        orders, order = kept[weight], node if held[weight].value.ndim == 3 else groups if transposed else 0
        if order not in orders:
            orders[order] = _copied(exported, weight, held[weight].value, len(orders)) if orders else weight
        reader.replace_input_with(weight, orders[order])


def _copied(exported: ExportedProgram, weight: Node, value: Tensor, number: int) -> Node:
    from executorch.backends.transforms.utils import create_constant_placeholder

    name, graph = f"{weight.name}_{number}", exported.graph
    (spec,) = [spec for spec in exported.graph_signature.input_specs if spec.arg.name == weight.name]
    with graph.inserting_before(weight):
        copy: Node = create_constant_placeholder(exported, graph, name, spec.kind, value.detach(), spec.persistent)
    return copy


def simplify_reshapes(graph_module: GraphModule) -> PassResult:
    """Drops what changes no shape, and turns the rest into `view_copy` with -1 for a dynamic size, the one form that XNNPACK takes.

    A view of two or more dynamic sizes stays as it is.

    Args:
        graph_module: in the edge dialect; it is changed.
    """
    from executorch.exir.dialects._ops import ops

    edge = ops.edge.aten
    view = edge.view_copy.default
    reshapes = (view, edge.squeeze_copy.dims, edge.squeeze_copy.dim, edge.unsqueeze_copy.default)
    for node in graph_module.graph.nodes:
        if node.target not in (*reshapes, edge.expand_copy.default, edge.slice_copy.Tensor) or not _is_contiguous(node.args[0]):
            continue
        shape = node.meta["val"].shape
        size = [each if isinstance(each, int) else -1 for each in shape]
        if node.target in reshapes and size.count(-1) <= 1 and 0 not in size:
            source = node.args[0]
            node.target, node.args = view, (source.args[0] if source.target is view else source, size)
        if statically_known_true(sym_eq(node.args[0].meta["val"].shape, shape)):  # comparing dynamic sizes with == would fix them
            node.replace_all_uses_with(node.args[0])
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return PassResult(graph_module, True)


def _is_contiguous(node: Node) -> bool:
    """False for channels last: `expand` sets that order of the elements back, which what follows may need, and no view knows it."""
    value = node.meta["val"]
    return statically_known_true(sym_eq(value.stride(), make_contiguous_strides_for(value.shape)))
