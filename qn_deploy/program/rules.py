"""How the runtimes round, where they do not round alike. Found by comparing millions of values with the real runtimes.

quantize a float      onnxruntime divides by the scale, XNNPACK multiplies with its reciprocal
mean of integers      a tie is rounded to even, by onnxruntime before it adds the zero point, by XNNPACK after
add                   onnxruntime (x86 with FMA): float32, fma(a, s_a/s_y, fma(b, s_b/s_y, z_y - (z_a s_a/s_y + z_b s_b/s_y))) on uint8
values, to even; onnxruntime (ARM): multipliers of 22 bits, the sum shifted back, a tie rounded away from zero; XNNPACK: multipliers of 21
bits, the sum shifted back, a tie rounded up
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

UNSIGNED = 128  # uint8 activations are the int8 ones plus this, zero point included


@dataclass(frozen=True)
class Grid:
    """A quantized tensor's scale and zero point: value == scale * (steps - zero)."""

    scale: Tensor  # float32 scalar
    zero: int


def add_in_float(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a + b on `grid`, not clamped, as onnxruntime adds uint8 tensors of one shape; a and b are int8 steps."""
    ratio_a, ratio_b = grid_a.scale / grid.scale, grid_b.scale / grid.scale
    offset: Tensor = (grid.zero + UNSIGNED) - ((grid_a.zero + UNSIGNED) * ratio_a + (grid_b.zero + UNSIGNED) * ratio_b)
    sums = _fma(a.double() + UNSIGNED, ratio_a, _fma(b.double() + UNSIGNED, ratio_b, offset))
    steps: Tensor = sums.round().long() - UNSIGNED
    return steps


def add_in_21_bits(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a + b on `grid`, not clamped, as XNNPACK adds int8 tensors of one shape; a and b are int8 steps."""
    return _add_in_fixed_point(a, b, grid_a, grid_b, grid, bits=21, away=False)


def add_in_22_bits(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid) -> Tensor:
    """int64 steps of a + b on `grid`, not clamped, as onnxruntime on ARM adds uint8 tensors of one shape; a and b are int8 steps."""
    return _add_in_fixed_point(a, b, grid_a, grid_b, grid, bits=22, away=True)


@dataclass(frozen=True)
class Rules:
    """One runtime's choices.

    Attributes:
        divides: floats are quantized by a division, else by multiplication with the reciprocal.
        ties_before_zero: a mean is rounded before the zero point is added, else after.
        add: the steps of a sum, as the functions above.
    """

    divides: bool
    ties_before_zero: bool
    add: Callable[[Tensor, Tensor, Grid, Grid, Grid], Tensor]


ONNXRUNTIME = Rules(divides=True, ties_before_zero=True, add=add_in_float)
ONNXRUNTIME_ARM = Rules(divides=True, ties_before_zero=True, add=add_in_22_bits)
XNNPACK = Rules(divides=False, ties_before_zero=False, add=add_in_21_bits)
ALL = (ONNXRUNTIME, ONNXRUNTIME_ARM, XNNPACK)


def _add_in_fixed_point(a: Tensor, b: Tensor, grid_a: Grid, grid_b: Grid, grid: Grid, bits: int, away: bool) -> Tensor:
    ratios = torch.stack((grid_a.scale / grid.scale, grid_b.scale / grid.scale))
    exponent = int(torch.frexp(ratios.max()).exponent) - 1  # of the larger: 2^exponent <= ratio < 2^(exponent + 1)
    shift = bits - 1 - exponent
    one, other = ratios.double().mul(2.0**shift).round().long().tolist()
    sums = (a.long() - grid_a.zero) * one + (b.long() - grid_b.zero) * other
    steps: Tensor = ((sums - (sums < 0).long() * away + (1 << (shift - 1))) >> shift) + grid.zero
    return steps


def _fma(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    # x holds integers of 8 bits, so float64 holds the product and the sum exactly, and there is one rounding, as in a fused multiply-add.
    result: Tensor = (x.double() * factor.double() + addend.double()).float()
    return result
