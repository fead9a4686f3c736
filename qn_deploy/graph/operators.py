"""The one table of operators: what each aten operator is, which argument is its weight, and what runtimes do with it in int8.

Recipes, folding, compression, lowering, the integer reference and the judge read it; to support an operator is to add a row (and, where
it computes, a rule). `capture` settles the graph first: operators work out of place, a product with a constant is a `linear`, and a weight
lies as its operator here says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch.fx import Node

_aten = torch.ops.aten


class Kind(str, Enum):
    """What an operator does, as far as int8 is concerned."""

    LINEAR = "linear"
    CONVOLUTION = "convolution"
    TRANSPOSED = "transposed convolution"
    LOOKUP = "lookup"  # of rows of a table
    RECURRENT = "recurrent"
    ADDITION = "addition"
    PRODUCT = "product"  # of two values, element by element
    CLAMP = "clamp"  # an activation between two bounds, which a runtime joins with the layer before it
    ACTIVATION = "activation"  # any other function of one value
    MEAN = "mean"  # over height and width
    SHAPE = "shape"  # moves values or picks some of them, and may add zeros: one range for what goes in and what comes out
    CONCATENATION = "concatenation"
    POOL = "pool"  # the largest of some values
    NORM = "norm"


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    Attributes:
        kind: what it does.
        weight: position of the weight among the arguments; None if it has none.
        bias: position of the bias among the arguments; None if it has none.
        module: the class of torch.nn that it stands for, by which recipes match a weight that no such module owns.
        one_scale: a compressed weight has one scale instead of one for each row: the rows of an embedding are short, so that four bytes for
            each would cost as much as its codes, and those of a transposed convolution are input channels, for which no kernel has scales.
        int8: both runtimes compute it in int8 where what it reads is int8, by the rule of its kind (`lowering/integer.py`); else in float.
            What only moves values (SHAPE, CONCATENATION, POOL) gives the same in int8 and in float.
    """

    kind: Kind
    weight: int | None = None
    bias: int | None = None
    module: str = ""
    one_scale: bool = False
    int8: bool = True


def _convolution(dimensions: int) -> Operator:
    return Operator(Kind.CONVOLUTION, 1, 2, f"Conv{dimensions}d", int8=dimensions < 3)


def _transposed(dimensions: int) -> Operator:
    return Operator(Kind.TRANSPOSED, 1, 2, f"ConvTranspose{dimensions}d", one_scale=True, int8=dimensions < 3)


def _each(kind: Kind, *targets: Any, int8: bool = True) -> dict[Any, Operator]:
    return dict.fromkeys(targets, Operator(kind, int8=int8))


OPERATORS: dict[Any, Operator] = {
    _aten.linear.default: Operator(Kind.LINEAR, 1, 2, "Linear"),
    _aten.conv1d.default: _convolution(1),
    _aten.conv2d.default: _convolution(2),
    _aten.conv3d.default: _convolution(3),
    _aten.conv1d.padding: _convolution(1),
    _aten.conv2d.padding: _convolution(2),
    _aten.conv3d.padding: _convolution(3),
    _aten.conv_transpose1d.default: _transposed(1),
    _aten.conv_transpose2d.input: _transposed(2),
    _aten.conv_transpose3d.input: _transposed(3),
    _aten.embedding.default: Operator(Kind.LOOKUP, 0, None, "Embedding", one_scale=True, int8=False),
    _aten.embedding_bag.padding_idx: Operator(Kind.LOOKUP, 0, None, "EmbeddingBag", one_scale=True, int8=False),
    _aten.lstm.input: Operator(Kind.RECURRENT, None, None, "LSTM", int8=False),  # its weights are a list, argument 2
    _aten.gru.input: Operator(Kind.RECURRENT, None, None, "GRU", int8=False),
    _aten.rnn_tanh.input: Operator(Kind.RECURRENT, None, None, "RNN", int8=False),
    _aten.rnn_relu.input: Operator(Kind.RECURRENT, None, None, "RNN", int8=False),
    **_each(Kind.ADDITION, _aten.add.Tensor),
    **_each(Kind.PRODUCT, _aten.mul.Tensor),
    **_each(Kind.CLAMP, _aten.relu.default, _aten.relu6.default, _aten.hardtanh.default),
    **_each(Kind.ACTIVATION, _aten.sigmoid.default, _aten.tanh.default, _aten.silu.default, _aten.hardswish.default),
    **_each(Kind.ACTIVATION, _aten.hardsigmoid.default, _aten.gelu.default, _aten.leaky_relu.default, _aten.elu.default),
    **_each(Kind.MEAN, _aten.adaptive_avg_pool2d.default, _aten.mean.dim),
    **_each(Kind.POOL, _aten.max_pool2d.default, _aten.max_pool1d.default, _aten.max_pool3d.default),
    **_each(Kind.CONCATENATION, _aten.cat.default),
    **_each(Kind.SHAPE, _aten.view.default, _aten.reshape.default, _aten.flatten.using_ints, _aten.unflatten.int),
    **_each(Kind.SHAPE, _aten.permute.default, _aten.transpose.int, _aten.slice.Tensor, _aten.select.int),
    **_each(Kind.SHAPE, _aten.unsqueeze.default, _aten.squeeze.dims, _aten.squeeze.dim, _aten.squeeze.default),
    **_each(Kind.SHAPE, _aten.pad.default, _aten.constant_pad_nd.default, _aten.expand.default, _aten.repeat.default),
    **_each(Kind.SHAPE, _aten.clone.default, _aten.contiguous.default, _aten.alias.default, _aten._unsafe_view.default),
    **_each(Kind.SHAPE, _aten.pixel_shuffle.default, _aten.pixel_unshuffle.default, _aten.channel_shuffle.default, _aten.roll.default),
    **_each(Kind.NORM, _aten.layer_norm.default, _aten.group_norm.default, int8=False),
    **_each(Kind.NORM, _aten.batch_norm.default, _aten.instance_norm.default, int8=False),
}
RECURRENT_WEIGHTS = 2  # position of the list of weights among the arguments of a recurrent operator


def operator_of(node: Node) -> Operator | None:
    """The row of a node's operator; None if the table has none."""
    return OPERATORS.get(node.target) if node.op == "call_function" else None


def kind_of(node: Node) -> Kind | None:
    """The kind of a node's operator; None if the table has no row for it."""
    operator = operator_of(node)
    return None if operator is None else operator.kind


def of_kind(*kinds: Kind) -> frozenset[Any]:
    """The operators of these kinds."""
    return frozenset(target for target, operator in OPERATORS.items() if operator.kind in kinds)


LINEAR = of_kind(Kind.LINEAR)
CONVOLUTIONS = of_kind(Kind.CONVOLUTION)
TRANSPOSED = of_kind(Kind.TRANSPOSED)
LAYERS = LINEAR | CONVOLUTIONS | TRANSPOSED
INT8_LAYERS = frozenset(target for target in LAYERS if OPERATORS[target].int8)  # what both runtimes compute with int8 weights
CLAMPS = of_kind(Kind.CLAMP)
CURVES = of_kind(Kind.CLAMP, Kind.ACTIVATION)  # functions of one value
PAIRS = of_kind(Kind.ADDITION, Kind.PRODUCT)


def weights_of(node: Node) -> Iterator[Node]:
    """The nodes that an operator reads as weights: matrices and kernels, no biases."""
    operator = operator_of(node)
    if operator is None:
        return
    if operator.kind is Kind.RECURRENT:
        listed: Any = node.args[RECURRENT_WEIGHTS]
        yield from (source for source in listed if _rank(source) > 1)
    elif operator.weight is not None and isinstance(source := node.args[operator.weight], Node):
        yield source


def _rank(source: Any) -> int:
    return source.meta["val"].ndim if isinstance(source, Node) else 0
