"""What a program is worth by a metric, and what another one loses of that: on the metric's samples, or on others of their kind too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from math import ceil, floor, inf, isfinite, log10
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.program import Batch, Program

Run = Callable[..., tuple[Tensor, ...]]
"""A program that runs: takes a tensor for each input, gives one for each output."""

Metric = Callable[[Run], float | Tensor]
"""What a program is worth, in points, more being better: one number, or a tensor [N] of the points of each of N samples."""


class Drop:
    """What programs lose by a metric.

    Args:
        metric: what a program is worth.
        program: float; it loses nothing.
        confidence: where the metric gives the points of each sample, how sure it is that samples of the same kind that the metric does
            not hold lose no more than is told.

    Raises:
        InputError: the metric gives no finite numbers for the float program.
    """

    def __init__(self, metric: Metric, program: Program, confidence: float) -> None:
        self._metric, self._margin = metric, NormalDist().inv_cdf(confidence)
        given = self._judged(program)
        self._whole = _points(given)
        if not self._whole.isfinite().all():
            told = f"{given}" if self._whole.ndim == 0 else "NaN or infinity among the points"
            raise InputError(f"the metric gives {told} for the float model; expected a number of points")

    def of(self, small: Program) -> float:
        """The points that a program loses, with a margin for the choice of samples where each has its points; `inf` for no finite number.

        Raises:
            InputError: the metric gives another number of points than for the float program.
        """
        points = _points(self._judged(small))
        if points.shape != self._whole.shape:
            raise InputError(
                f"the metric gives points {list(points.shape)} for a compressed model, and {list(self._whole.shape)} for the float one; "
                "it has to judge the same samples each time"
            )
        lost = self._whole - points
        if not lost.isfinite().all():
            return inf
        return float(lost.mean()) + self._margin * standard_error(lost)

    @torch.no_grad()
    def _judged(self, program: Program) -> Any:
        return self._metric(unlifted(program.exported))


def standard_error(values: Tensor) -> float:
    """Of the mean of values [N], by the normal approximation; 0 for a single number, of which nothing is known.

    Differences of two programs on the same samples have a far smaller one than what each of the two is worth.
    """
    return float(values.double().std()) / values.numel() ** 0.5 if values.numel() > 1 else 0.0


def signal(program: Program, batches: list[Batch]) -> Callable[[Run], float]:
    """A metric for programs without one: 10 log10 of the share of the outputs' power that is not noise, in dB; the float program has 0.

    The output that fares worst counts. A drop of 0.1 dB is an SQNR of 16.4 dB, 0.5 dB one of 9.6 dB.
    """
    whole = unlifted(program.exported)
    with torch.no_grad():
        expected = [whole(*batch) for batch in batches]

    @torch.no_grad()
    def worth(run: Run) -> float:
        noise: defaultdict[int, float] = defaultdict(float)
        power: defaultdict[int, float] = defaultdict(float)
        for batch, outputs in zip(batches, expected, strict=True):
            for index, (ours, theirs) in enumerate(zip(run(*batch), outputs, strict=True)):
                if theirs.is_floating_point():
                    noise[index] += float((ours - theirs).double().square().sum())
                    power[index] += float(theirs.double().square().sum())
        share = max((noise[index] / power[index] for index in power if power[index]), default=0.0)
        return 10 * log10(1 - share) if share < 1 else -inf

    return worth


def out_of_reach(drop: float, least: float, size: int | None) -> str:
    """What to say where no compressed program keeps a drop."""
    if size is None or not isfinite(least):
        return f"no compressed program loses at most {drop:g} points, nor any number of points that is finite; keep the model float"
    digits = 3 - floor(log10(least)) if least > 0 else 0
    nearest = ceil(least * 10**digits) / 10**digits  # rounded up, so that it can be kept
    return (
        f"no compressed program loses at most {drop:g} points; the smallest drop that was found is {nearest:.10g}, in a file of {size:,} "
        f"bytes. Give --max-drop {nearest:.10g} or more, or tune what a size gives"
    )


def _points(given: Any) -> Tensor:
    """float64 [] or [N].

    Raises:
        InputError: it is something else.
    """
    try:
        points = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"the metric gives a {type(given).__name__}; {_EXPECTED}") from None
    if points.ndim > 1 or not points.numel():
        raise InputError(f"the metric gives a tensor {list(points.shape)}; {_EXPECTED}")
    return points


_EXPECTED = "expected a number of points, or a tensor [N] of the points of each sample"
