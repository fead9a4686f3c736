"""The integer reference: a static int8 program computed as a runtime computes it.

The simulated program multiplies floats; runtimes multiply int8, sum in int32 and requantize the sum. Both are right, and they differ
by a step here and there. This interpreter runs the same graph with the runtimes' rule for convolutions and linears,

    acc = sum (x_q - z_x) * w_q + round(bias / (s_x * s_w))                                   int32, exact
    y_q = clamp(round_half_even(float32(acc) * float32(s_x * s_w / s_y)) + z_y, low, high)    as XNNPACK and onnxruntime do

with each runtime's own rules for means, sums, products and floats that enter (`rules.py`), with tables for activations (`curves.py`), and
with the simulation's rounding for everything else, so that a runtime can be compared bit for bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter

from qn_deploy.graph.operators import CLAMPS, CURVES, LAYERS, LINEAR, PAIRS, TRANSPOSED, Kind, operator_of
from qn_deploy.lowering.curves import Function, are_certain, clamp_bounds, curve_steps, function_of, is_certain
from qn_deploy.lowering.placement import is_global_mean
from qn_deploy.lowering.rules import Grid, PairRule, Rules
from qn_deploy.lowering.settle import computes_int8, is_quantized, is_settled, pair_rule, range_behind
from qn_deploy.program.program import Batch

_decomposed = torch.ops.quantized_decomposed
_aten = torch.ops.aten


@dataclass(frozen=True)
class Quantized:
    """A dequantized tensor that remembers its integers: value == scale * (steps - zero)."""

    steps: Tensor  # int8, any shape
    scale: Tensor  # float32 scalar, or [out] for a weight
    zero: int = 0

    @property
    def grid(self) -> Grid:
        """Scale and zero point."""
        return Grid(self.scale, self.zero)


@dataclass(frozen=True)
class Accumulator:
    """The int32 sums of a convolution or linear, before they are requantized: value == scale * sums."""

    sums: Tensor  # int64 holding int32 values, channels in dimension 1 (convolution) or last (linear)
    scale: Tensor  # float32, broadcastable to sums: s_x * s_w of each channel
    low: float = -inf  # of an activation behind it
    high: float = inf


@dataclass(frozen=True)
class Mean:
    """The mean over height and width of a quantized tensor, before it is requantized: value == scale * sums / count."""

    sums: Tensor  # int64 [N, C, 1, 1] of steps - zero
    scale: Tensor  # float32 scalar
    count: int


@dataclass(frozen=True)
class Pair:
    """The sum or product of two quantized tensors, before it is requantized."""

    a: Quantized
    b: Quantized
    operator: Callable[[Tensor, Tensor], Tensor]
    rule: PairRule
    low: float = -inf  # of an activation behind it
    high: float = inf


@dataclass(frozen=True)
class Curve:
    """An activation of a quantized tensor, before it is requantized."""

    x: Quantized
    function: Function


class IntegerReference(Interpreter):
    """Runs a lowered static program as the runtime with these rules does."""

    def __init__(self, exported: ExportedProgram, rules: Rules) -> None:
        super().__init__(exported.module(check_guards=False))
        self._rules = rules

    def __call__(self, inputs: Batch) -> Batch:
        """Outputs of the program for one batch of inputs."""
        with torch.no_grad():
            outputs = torch.utils._pytree.tree_leaves(self.run(*inputs))
        return tuple(as_float(output) for output in outputs)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Computes one node, with integers where the rule above applies."""
        if target is _decomposed.dequantize_per_tensor.default:
            values, scale, zero = args[:3]
            return Quantized(values, torch.tensor(scale, dtype=torch.float32), zero)
        if target is _decomposed.dequantize_per_channel.default and args[3] == 0:
            return Quantized(args[0], args[1].float())
        if target in CLAMPS and isinstance(args[0], Accumulator | Pair):
            low, high = clamp_bounds(function_of(target, args))
            return replace(args[0], low=low, high=high)
        if target in CURVES and isinstance(args[0], Quantized) and not kwargs:
            return Curve(args[0], function_of(target, args))
        if target is _decomposed.quantize_per_tensor.default:
            return self._quantize(*args)
        if target in LAYERS and all(isinstance(arg, Quantized) for arg in args[:2]) and _sums_integers(target, args[1]):
            return _accumulate(target, *args)
        if target is _aten.adaptive_avg_pool2d.default and isinstance(args[0], Quantized) and list(args[1]) == [1, 1]:
            return _mean(args[0])
        if (rule := pair_rule(target, self._rules)) and len(args) == 2 and not kwargs and all(isinstance(arg, Quantized) for arg in args):
            return Pair(*args, target, rule)
        if target is operator.getitem:
            return super().call_function(target, args, kwargs)
        floats = torch.utils._pytree.tree_map_only(_INTEGERS, as_float, (args, kwargs), is_leaf=lambda value: isinstance(value, _INTEGERS))
        return super().call_function(target, *floats)

    def _quantize(self, value: Any, scale: float, zero: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
        grid = Grid(torch.tensor(scale, dtype=torch.float32), zero)
        if isinstance(value, Accumulator):
            steps = (value.sums.float() * (value.scale / grid.scale)).round() + zero
        elif isinstance(value, Mean):
            mean = value.sums.float() * (value.scale / value.count / grid.scale)
            steps = mean.round() + zero if self._rules.ties_before_zero else (mean + zero).round()
        elif isinstance(value, Pair):
            steps = value.rule(value.a.steps, value.b.steps, value.a.grid, value.b.grid, grid)
        elif isinstance(value, Curve):
            steps = curve_steps(value.function, value.x.grid, grid)[value.x.steps.long() + 128]
        else:
            floats = as_float(value)
            steps = (floats / grid.scale if self._rules.divides else floats * (1.0 / scale)).round() + zero
        if isinstance(value, Accumulator | Pair):
            steps = steps.clamp(*(torch.tensor((value.low, value.high)) / grid.scale).round() + zero)
        return steps.clamp(low, high).to(dtype)


def _sums_integers(target: Any, weight: Quantized) -> bool:
    return target not in TRANSPOSED or weight.scale.ndim == 0  # else a scale for each input channel, inside the sum


def _accumulate(target: Any, x: Quantized, weight: Quantized, bias: Tensor | None = None, *rest: Any) -> Accumulator:
    # float64 holds every sum of int8 products exactly, and has a fast convolution.
    sums = target(x.steps.double() - x.zero, weight.steps.double(), None, *rest).round().long()
    channels = (-1,) if target in LINEAR else (-1, *[1] * (weight.steps.ndim - 2))
    scale = x.scale * weight.scale
    if bias is not None:
        sums = sums + (bias / scale).round().long().reshape(channels)
    return Accumulator(sums, scale.reshape(channels))


def _mean(x: Quantized) -> Mean:
    return Mean((x.steps.long() - x.zero).sum((2, 3), keepdim=True), x.scale, x.steps.shape[2] * x.steps.shape[3])


_INTEGERS = (Quantized, Accumulator, Mean, Pair, Curve)


def as_float(value: Any) -> Any:
    """Any value of the reference in float32; one that has not been requantized yet by its own scale."""
    if isinstance(value, Quantized):
        channels = (-1, *[1] * (value.steps.ndim - 1)) if value.scale.ndim else ()
        return (value.steps.float() - value.zero) * value.scale.reshape(channels)
    if isinstance(value, Mean):
        return value.sums.float() * (value.scale / value.count)
    if isinstance(value, Accumulator):
        return (value.sums.float() * value.scale).clamp(value.low, value.high)
    if isinstance(value, Pair):
        return value.operator(as_float(value.a), as_float(value.b)).clamp(value.low, value.high)
    if isinstance(value, Curve):
        return value.function(as_float(value.x))
    return value


# What moves or compares values gives the same numbers in any arithmetic.
_MOVES = (Kind.SHAPE, Kind.CONCATENATION, Kind.POOL)


def inexact_operators(exported: ExportedProgram) -> list[str]:
    """Operators of a lowered static program that the reference computes by no runtime's rule, in the graph's order."""
    computed = [node for node in exported.graph.nodes if node.op == "call_function" and node.target is not operator.getitem]
    return [node.name for node in computed if not _is_exact(node, exported)]


def _has_floats(node: Any) -> bool:
    """True for what computes float tensors: integers are the same everywhere."""
    value = node.meta.get("val")
    results = value if isinstance(value, tuple | list) else (value,)  # an LSTM has several
    return any(isinstance(result, Tensor) and result.is_floating_point() for result in results)


def _is_exact(node: Any, exported: ExportedProgram) -> bool:
    """True if what the operator really reads and gives is as its kind's rule asks: a layer whose weight stayed float has none."""
    if node.target is _decomposed.quantize_per_tensor.default:
        return _is_certain(node)
    if not _has_floats(node) or node.target in (_decomposed.dequantize_per_tensor.default, _decomposed.dequantize_per_channel.default):
        return True
    row = operator_of(node)
    if row is None:
        return False
    if row.kind in _MOVES or node.target is _aten.embedding.default:
        return True
    if node.target in TRANSPOSED:
        return _fits_float(node, exported)
    if node.target in LAYERS:
        return row.int8 and is_quantized(node.args[0]) and _is_int8(node.args[1]) and range_behind(node, CLAMPS) is not None
    if row.kind is Kind.MEAN:
        return is_global_mean(node) and is_quantized(node.args[0]) and range_behind(node) is not None
    if computes_int8(node) and range_behind(node):
        return is_settled(node)
    if node.target in CLAMPS:  # of floats it is the same in each runtime, and so it is in the steps of the layer that it joins
        bounds, behind = clamp_bounds(function_of(node.target, node.args)), range_behind(node)
        return behind is None or are_certain(bounds, behind[0])
    return computes_int8(node) and node.target in PAIRS  # a sum or a product of floats


def _is_certain(quantize: Any) -> bool:
    """True if no rounding error decides a step: floats are quantized by a rule, and int8 steps on another grid by none."""
    source, scale, zero = quantize.args[:3]
    if not is_quantized(source) or source.args[1:3] == (scale, zero):
        return True
    one, other = (Grid(torch.tensor(node.args[1], dtype=torch.float32), node.args[2]) for node in (source, quantize))
    return is_certain(lambda x: x, one, other)


def _is_int8(weight: Any) -> bool:
    return is_quantized(weight) or weight.target is _decomposed.dequantize_per_channel.default


def _fits_float(layer: Any, exported: ExportedProgram) -> bool:
    """True if no sum of a transposed layer is beyond 2^24: onnxruntime sums its integers in float32."""
    x, weight, bias, *rest = layer.args if len(layer.args) > 2 else (*layer.args, None)
    constants = {**exported.graph_signature.inputs_to_buffers, **exported.graph_signature.inputs_to_parameters}
    if not (is_quantized(x) and is_quantized(weight) and range_behind(layer, CLAMPS)):
        return False
    values = exported.state_dict[constants[weight.args[0].name]].double().abs()
    largest = torch.full((1, len(values), *(2 * size for size in values.shape[2:])), 255.0, dtype=torch.float64)
    most = layer.target(largest, values, None, *rest).max()
    if bias is not None:
        most += (exported.state_dict[constants[bias.name]] / (x.args[1] * weight.args[1])).abs().max()
    return bool(most < 2**24)
