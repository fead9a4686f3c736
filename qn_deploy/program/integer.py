"""The integer reference: a static int8 program computed as the runtimes compute it.

The simulated program multiplies floats; runtimes multiply int8, sum in int32 and requantize the sum. Both are right, and they differ
by a step here and there. This interpreter runs the same graph with the runtimes' own rule for convolutions and linears,

    acc = sum (x_q - z_x) * w_q + round(bias / (s_x * s_w))                                   int32, exact
    y_q = clamp(round_half_even(float32(acc) * float32(s_x * s_w / s_y)) + z_y, low, high)    as XNNPACK and onnxruntime do

a mean over height and width likewise (the frequent ties of a mean of integers are rounded by chance in float), and the simulation's
rule for everything else, so that a runtime can be compared bit for bit.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node

from qn_deploy.program.program import Batch

_decomposed = torch.ops.quantized_decomposed
_aten = torch.ops.aten
_MATMULS = (_aten.conv2d.default, _aten.linear.default)
_RELUS = (_aten.relu.default, _aten.relu_.default)


@dataclass(frozen=True)
class Quantized:
    """A dequantized tensor that remembers its integers: value == scale * (steps - zero)."""

    steps: Tensor  # int8, any shape
    scale: Tensor  # float32 scalar, or [out] for a weight
    zero: int = 0


@dataclass(frozen=True)
class Accumulator:
    """The int32 sums of a convolution or linear, before they are requantized: value == scale * sums."""

    sums: Tensor  # int64 holding int32 values, channels in dimension 1 (convolution) or last (linear)
    scale: Tensor  # float32, broadcastable to sums: s_x * s_w of each channel
    rectified: bool = False


class IntegerReference(Interpreter):
    """Runs a lowered static program with integer convolutions and linears."""

    def __init__(self, exported: ExportedProgram) -> None:
        super().__init__(exported.module(check_guards=False))

    def __call__(self, inputs: Batch) -> Batch:
        """Outputs of the program for one batch of inputs."""
        with torch.no_grad():
            outputs = torch.utils._pytree.tree_leaves(self.run(*inputs))
        return tuple(_float(output) for output in outputs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Computes one node, with integers where the rule above applies."""
        if target is _decomposed.dequantize_per_tensor.default:
            values, scale, zero = args[:3]
            return Quantized(values, torch.tensor(scale, dtype=torch.float32), zero)
        if target is _decomposed.dequantize_per_channel.default and args[3] == 0:
            return Quantized(args[0], args[1].float())
        if target in _RELUS and isinstance(args[0], Accumulator):
            return replace(args[0], rectified=True)
        if target is _decomposed.quantize_per_tensor.default and isinstance(args[0], Accumulator):
            return _requantize(*args)
        if target in _MATMULS and all(isinstance(arg, Quantized) for arg in args[:2]):
            return _accumulate(target, *args)
        if target is _aten.adaptive_avg_pool2d.default and isinstance(args[0], Quantized) and list(args[1]) == [1, 1]:
            return _mean(args[0])
        if target is operator.getitem:
            return super().call_function(target, args, kwargs)
        floats = torch.utils._pytree.tree_map_only((Quantized, Accumulator), _float, (args, kwargs), is_leaf=_is_integer)
        return super().call_function(target, *floats)


def _accumulate(target: Any, x: Quantized, weight: Quantized, bias: Tensor | None = None, *rest: Any) -> Accumulator:
    # float64 holds every sum of int8 products exactly, and has a fast convolution.
    sums = target(x.steps.double() - x.zero, weight.steps.double(), None, *rest).round().long()
    channels = (-1, 1, 1) if target is _aten.conv2d.default else (-1,)
    scale = x.scale * weight.scale
    if bias is not None:
        sums = sums + (bias / scale).round().long().reshape(channels)
    return Accumulator(sums, scale.reshape(channels))


def _mean(x: Quantized) -> Accumulator:
    sums = (x.steps.long() - x.zero).sum((2, 3), keepdim=True)
    return Accumulator(sums, x.scale / (x.steps.shape[2] * x.steps.shape[3]))


def _requantize(value: Accumulator, scale: float, zero: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    multiplier = value.scale / torch.tensor(scale, dtype=torch.float32)
    steps = (value.sums.float() * multiplier).round() + zero
    return steps.clamp(max(low, zero) if value.rectified else low, high).to(dtype)


def _is_integer(value: object) -> bool:
    return isinstance(value, Quantized | Accumulator)


def _float(value: Any) -> Any:
    if isinstance(value, Quantized):
        channels = (-1, *[1] * (value.steps.ndim - 1)) if value.scale.ndim else ()
        return (value.steps.float() - value.zero) * value.scale.reshape(channels)
    if isinstance(value, Accumulator):
        floats = value.sums.float() * value.scale
        return floats.relu() if value.rectified else floats
    return value


# Operators that move or compare quantized values and so stay on the grid: the same numbers come out of any arithmetic.
_EXACT = {
    *_MATMULS,
    *_RELUS,
    _aten.max_pool2d.default,
    _aten.flatten.using_ints,
    _aten.view.default,
    _aten.reshape.default,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.slice.Tensor,
    _aten.pad.default,
    _aten.constant_pad_nd.default,
    _aten.cat.default,
    _aten.unsqueeze.default,
    _aten.squeeze.dims,
    _aten.dropout.default,
    _decomposed.dequantize_per_tensor.default,
    _decomposed.dequantize_per_channel.default,
    _decomposed.quantize_per_tensor.default,
}


def inexact_operators(exported: ExportedProgram) -> list[str]:
    """Operators of a lowered static program for which the runtimes have no common exact rule, in the graph's order."""
    nodes = [node for node in exported.graph.nodes if node.op == "call_function"]
    return [
        node.name
        for node in nodes
        if node.target not in _EXACT and not _is_exact_mean(node) and isinstance(node.meta.get("val"), Tensor)
    ]


def _is_exact_mean(node: Node) -> bool:
    """True for a mean over height and width whose ties every runtime rounds alike.

    onnxruntime rounds a tie to even before it adds the zero point, XNNPACK after: the same number only for an even zero point.
    """
    if node.target is not _aten.adaptive_avg_pool2d.default or list(node.args[1]) != [1, 1]:
        return False
    source = node.args[0]
    return source.target is _decomposed.dequantize_per_tensor.default and int(source.args[2]) % 2 == 0
