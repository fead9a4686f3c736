"""Finds what quantization left nothing of: an output, or a channel of one, that became constant while the float model's varies.

Noise is a loss that a user weighs; a constant is a detector whose scores are all one value beside boxes of hundreds of pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

VARIES = 0.1  # of the largest value: below it lies a network with random weights, whose answers hardly depend on its input
MIN_VALUES = 16  # of a channel: fewer may well be one step apart
_NAMED = 8  # channels in a message


def channel_axes(rank: int) -> tuple[int, ...]:
    """The dimensions that may count channels in an output: 1 after a batch, and the last of three, as in [batch, boxes, 4 + classes]."""
    return {0: (), 1: (), 3: (1, 2)}.get(rank, (1,))


def by_channel(values: Tensor, axis: int) -> Tensor:
    """[channels, values of each]."""
    return values.movedim(axis, 0).reshape(values.shape[axis], -1)


def collapsed(found: Tensor, expected: Tensor) -> str | None:
    """What of an output is constant, or NaN, where the float model's varies.

    Args:
        found: what the simulated program gives.
        expected: what the float model gives, of the same shape.

    Returns:
        It in words, or None. What varies by less than a tenth of its largest value is not missed; nor is a channel of fewer than 16 values,
        or one among others that hardly vary either.
    """
    if not expected.is_floating_point() or found.shape != expected.shape or not expected.numel():
        return None
    if lost := int((found.isnan() & ~expected.isnan()).sum()):
        return f"{lost:,} of {found.numel():,} values are NaN where the float model gives numbers"
    known = expected.isfinite() & found.isfinite()
    a, b = (each.double().masked_fill(~known, 0.0) for each in (found, expected))
    if bool(_constant(a.reshape(1, -1)) & (_variation(b.reshape(1, -1)) >= VARIES)):
        return f"all {a.numel():,} values are {float(a.flatten()[0]):.4g}, where the float model's go from {b.min():.4g} to {b.max():.4g}"
    for axis in channel_axes(a.ndim):
        ours, theirs = by_channel(a, axis), by_channel(b, axis)
        variation = _variation(theirs)
        if theirs.shape[1] < MIN_VALUES or variation.median() < VARIES:
            continue
        if gone := (_constant(ours) & (variation >= VARIES)).nonzero().flatten().tolist():
            listed = ", ".join(map(str, gone[:_NAMED])) + (f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else "")
            largest = float(theirs[gone].abs().max())
            return (
                f"{len(gone)} of {len(ours)} channels of dimension {axis} ({listed}) are one value each, where the float model's vary, "
                f"up to {largest:.4g} beside {float(b.abs().max()):.4g} in the whole output"
            )
    return None


def _constant(rows: Tensor) -> Tensor:
    return rows.amax(1) == rows.amin(1)


def _variation(rows: Tensor) -> Tensor:
    """How far the values of a row are apart, as a share of the largest; 0 for a row of zeros."""
    largest = rows.abs().amax(1)
    return torch.where(largest > 0, (rows.amax(1) - rows.amin(1)) / largest, 0.0)
