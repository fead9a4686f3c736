"""How the runtimes round, where they do not round alike. Found by comparing millions of values with the real runtimes.

quantize a float      onnxruntime divides by the scale, XNNPACK multiplies with its reciprocal
mean of integers      a tie is rounded to even, by onnxruntime before it adds the zero point, by XNNPACK after
add                   onnxruntime (x86 with FMA): float32, fma(a, s_a/s_y, fma(b, s_b/s_y, z_y - fma(z_a, s_a/s_y, z_b s_b/s_y))) on uint8
values, to even; onnxruntime (ARM): multipliers of 22 bits, the sum shifted back, a tie rounded away from zero; XNNPACK: multipliers of 21
bits, the sum shifted back, a tie rounded up
multiply              p = (a - z_a)(b - z_b), r = s_a s_b / s_y. onnxruntime: float32, p r + z_y on uint8 values, to even, the product being
rounded first (x86) or not (ARM); XNNPACK: p r in float32, to even (x86), or exactly, a tie rounded up (ARM), then z_y is added
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

UNSIGNED = 128  # uint8 activations are the int8 ones plus this, zero point included


@dataclass(frozen=True)
class Grid:
    """A quantized tensor's scale and zero point: value == scale * (steps - zero)."""

    scale: Tensor  # float32 scalar
    zero: int


def add_in_float(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a + b on `grid`, not clamped, as onnxruntime adds uint8 tensors; a and b are int8 steps."""
    ratio_a, ratio_b = grid_a.scale / grid.scale, grid_b.scale / grid.scale
    zero_a, zero_b = (torch.tensor(float(one.zero + UNSIGNED)) for one in (grid_a, grid_b))
    offset = (grid.zero + UNSIGNED) - _fma(zero_a, ratio_a, zero_b * ratio_b)
    sums = _fma(a.double() + UNSIGNED, ratio_a, _fma(b.double() + UNSIGNED, ratio_b, offset))
    steps: Tensor = sums.round().long() - UNSIGNED
    return steps


def add_in_21_bits(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a + b on `grid`, not clamped, as XNNPACK adds int8 tensors; a and b are int8 steps."""
    return _add_in_fixed_point(a, b, grid_a, grid_b, grid, bits=21, away=False)


def add_in_22_bits(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a + b on `grid`, not clamped, as onnxruntime on ARM adds uint8 tensors; a and b are int8 steps."""
    return _add_in_fixed_point(a, b, grid_a, grid_b, grid, bits=22, away=True)


def multiply_in_float(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a * b on `grid`, not clamped, as onnxruntime multiplies uint8 tensors; a and b are int8 steps."""
    scaled = _products(a, b, grid_a, grid_b).float() * _ratio(grid_a, grid_b, grid)
    return (scaled + (grid.zero + UNSIGNED)).round().long() - UNSIGNED


def multiply_fused(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a * b on `grid`, not clamped, as onnxruntime on ARM multiplies uint8 tensors; a and b are int8 steps."""
    offset = torch.tensor(float(grid.zero + UNSIGNED))
    steps: Tensor = _fma(_products(a, b, grid_a, grid_b), _ratio(grid_a, grid_b, grid), offset).round().long() - UNSIGNED
    return steps


def multiply_to_even(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a * b on `grid`, not clamped, as XNNPACK multiplies int8 tensors on x86; a and b are int8 steps."""
    return (_products(a, b, grid_a, grid_b).float() * _ratio(grid_a, grid_b, grid)).round().long() + grid.zero


def multiply_upwards(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a * b on `grid`, not clamped, as XNNPACK multiplies int8 tensors on ARM; a and b are int8 steps."""
    exact = _products(a, b, grid_a, grid_b).double() * _ratio(grid_a, grid_b, grid).double()
    return (exact + 0.5).floor().long() + grid.zero


PairRule = Callable[[Tensor, Tensor, Grid, Grid, Grid], Tensor]


@dataclass(frozen=True)
class Rules:
    """One runtime's choices.

    Attributes:
        divides: floats are quantized by a division, else by multiplication with the reciprocal.
        ties_before_zero: a mean is rounded before the zero point is added, else after.
        add: the steps of a sum, as the functions above.
        multiply: the steps of a product, as the functions above.
    """

    divides: bool
    ties_before_zero: bool
    add: PairRule
    multiply: PairRule


ONNXRUNTIME = Rules(divides=True, ties_before_zero=True, add=add_in_float, multiply=multiply_in_float)
ONNXRUNTIME_ARM = replace(ONNXRUNTIME, add=add_in_22_bits, multiply=multiply_fused)
XNNPACK = Rules(divides=False, ties_before_zero=False, add=add_in_21_bits, multiply=multiply_to_even)
XNNPACK_ARM = replace(XNNPACK, multiply=multiply_upwards)
ALL = (ONNXRUNTIME, ONNXRUNTIME_ARM, XNNPACK, XNNPACK_ARM)


def _add_in_fixed_point(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid, bits: int, away: bool) -> Tensor:
    ratios = torch.stack((grid_a.scale / grid.scale, grid_b.scale / grid.scale))
    exponent = int(torch.frexp(ratios.max()).exponent) - 1  # of the larger: 2^exponent <= ratio < 2^(exponent + 1)
    shift = bits - 1 - exponent
    one, other = ratios.double().mul(2.0**shift).round().long().tolist()
    sums = (a.long() - grid_a.zero) * one + (b.long() - grid_b.zero) * other
    steps: Tensor = ((sums - (sums < 0).long() * away + (1 << (shift - 1))) >> shift) + grid.zero
    return steps


def _products(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid) -> Tensor:
    return (a.long() - grid_a.zero) * (b.long() - grid_b.zero)


def _ratio(grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    return grid_a.scale * grid_b.scale / grid.scale


def _fma(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    # x holds integers of 8 or 17 bits: float64 holds the product and the sum exactly, and rounds once, as a fused multiply-add does.
    result: Tensor = (x.double() * factor.double() + addend.double()).float()
    return result
