"""How far two tensors are apart, in the few numbers that the ladder speaks of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """How well `found` meets `expected`. NaN agrees with NaN alone, in the same place, and an infinity with itself alone.

    Attributes:
        is_float: what was expected is a float tensor; integers and truth values are equal or not, and have no decibels.
        identical: one dtype and the same bits, but for the sign of zero, which no runtime promises to keep.
        max_error: the largest absolute difference; NaN if one of the two alone is NaN somewhere.
        steps: `max_error` in quantization steps of the output; None for a float output.
        differing: share of values that differ by more than half a step (float output: at all).
        sqnr_db: signal to quantization noise ratio, 10 log10(|expected|^2 / |found - expected|^2), in dB; infinite without noise, and
            minus infinity without a finite ratio.
        cosine: cosine of the two, flattened; 1 without noise.
        top1: share of rows that have a largest entry along the last dimension in common; of equal ones any may be it.
    """

    is_float: bool
    identical: bool
    max_error: float
    steps: float | None
    differing: float
    sqnr_db: float
    cosine: float
    top1: float


def compare(found: Tensor, expected: Tensor, step: float | None = None) -> Agreement:
    """Compares two tensors of one shape.

    Args:
        found: what was computed.
        expected: what it should be.
        step: the quantization step of the output; None if it is float.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"found shape {list(found.shape)}, expected {list(expected.shape)}")
    a, b = found.double(), expected.double()
    same = (a == b) | (a.isnan() & b.isnan())
    error = torch.where(same, 0.0, (a - b).abs())  # infinity - infinity is NaN
    worst = float(error.max()) if error.numel() else 0.0
    void = same & ~b.isfinite()  # in both alike: neither signal nor noise
    x, y = a.masked_fill(void, 0.0), b.masked_fill(void, 0.0)
    noise, signal = float(error.square().sum()), float(y.square().sum())
    return Agreement(
        is_float=expected.is_floating_point(),
        identical=found.dtype == expected.dtype and bool(((found == expected) | void).all()),
        max_error=worst,
        steps=None if step is None else worst / step,
        differing=_share(~(error <= (0.0 if step is None else step / 2))),
        sqnr_db=_sqnr_db(signal, noise),
        cosine=float((x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-300)) if noise else 1.0,
        top1=1.0 - _share(~_same_top1(a, b)),
    )


def _sqnr_db(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(signal) and math.isfinite(noise) else -math.inf


def _same_top1(a: Tensor, b: Tensor) -> Tensor:
    """One bool for each row; none for an empty tensor."""
    if not a.numel():
        return torch.ones(0, dtype=torch.bool)
    width = a.shape[-1] if a.ndim else 1
    one, other = (each.masked_fill(a.isnan() & b.isnan(), -math.inf).reshape(-1, width) for each in (a, b))
    best, wanted = (each == each.amax(1, keepdim=True) for each in (one, other))  # nothing equals NaN
    return (best & wanted).any(1)


def _share(mask: Tensor) -> float:
    return float(mask.double().mean()) if mask.numel() else 0.0
