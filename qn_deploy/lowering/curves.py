"""Functions of one quantized value: activations. A table of 256 entries says what becomes of each int8 step.

Runtimes compute such a function in float32, each with approximations of its own (onnxruntime some in a table that it makes when it loads,
XNNPACK between two conversions), and quantize the result. They differ by rounding errors only, so they meet wherever no value is that near
to a tie; `settle.py` chooses the scale so.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from qn_deploy.lowering.rules import Grid

_aten = torch.ops.aten
Function = Callable[[Tensor], Tensor]

# No runtime was further than a sixth of this from float64, as a part of 1 + |x|: all of CURVES, x86 and ARM.
_ERROR = 2**-20


def function_of(target: Any, args: tuple[Any, ...]) -> Function:
    """An activation as a function of its first argument."""

    def function(x: Tensor) -> Tensor:
        result: Tensor = target(x, *args[1:])
        return result

    return function


def curve_steps(function: Function, x: Grid, grid: Grid) -> Tensor:
    """int64 [256], not clamped: the steps on `grid` of the function of each step of `x`, from -128 to 127."""
    return (_ideal(function, x, grid) + grid.zero).round().long()


def is_certain(function: Function, x: Grid, grid: Grid) -> bool:
    """True if no value of the function is so near to a tie that rounding errors could decide it."""
    ideal = (_ideal(function, x, grid) + grid.zero).clamp(-128, 127)  # further out any error is clamped away
    from_tie = (ideal - ideal.floor() - 0.5).abs()
    return bool((from_tie > _ERROR * (1 + _values(x).abs()) / grid.scale).all())


def _ideal(function: Function, x: Grid, grid: Grid) -> Tensor:
    return function(_values(x)) / grid.scale.double()


def _values(x: Grid) -> Tensor:
    return (torch.arange(-128, 128, dtype=torch.float64) - x.zero) * x.scale.double()


def clamp_bounds(function: Function) -> tuple[float, float]:
    """The least and the greatest value of a function of CLAMPS."""
    low, high = function(torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)).tolist()
    return low, high


def are_certain(bounds: tuple[float, float], scale: float) -> bool:
    """True if no bound is so near to a tie of the steps of `scale` that rounding errors could decide it."""
    return all(abs(bound / scale % 1 - 0.5) > 2**-10 for bound in bounds if isfinite(bound))
