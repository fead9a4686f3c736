"""How far two tensors are apart, in the few numbers that the ladder speaks of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Agreement:
    """How well `found` meets `expected`.

    Attributes:
        identical: every bit is the same.
        max_error: the largest absolute difference.
        steps: `max_error` in quantization steps of the output; None for a float output.
        differing: share of values that differ by half a step or more (float output: at all).
        sqnr_db: signal to quantization noise ratio, 10 log10(|expected|^2 / |found - expected|^2), in dB.
        cosine: cosine of the two, flattened.
        top1: share of rows with the same largest entry along the last dimension.
    """

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
    error = (a - b).abs()
    worst = float(error.max()) if error.numel() else 0.0
    noise, signal = float((a - b).square().sum()), float(b.square().sum())
    rows = (a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])) if a.ndim else (a.reshape(1, 1), b.reshape(1, 1))
    return Agreement(
        identical=found.dtype == expected.dtype and bool((found == expected).all()),
        max_error=worst,
        steps=None if step is None else worst / step,
        differing=float((error > (0.0 if step is None else step / 2)).double().mean()) if error.numel() else 0.0,
        sqnr_db=math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 and math.isfinite(noise) else -math.inf,
        cosine=float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-300)) if noise else 1.0,
        top1=float((rows[0].argmax(-1) == rows[1].argmax(-1)).double().mean()),
    )
