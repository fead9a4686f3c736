"""Schedules of a noise rate: functions from the training step to the rate.

    for step, batch in enumerate(batches):
        noise.set_rate(model, schedule(step))

A schedule holds no state, so a run that goes on from a checkpoint goes on with the rate of its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from qn_deploy.errors import InputError
from qn_deploy.noise.rate import check_rate

Schedule = Callable[[int], float]
"""step, from 0 -> rate, 0 to 1."""


@dataclass(frozen=True)
class Constant:
    """One rate all along, as in the paper.

    Attributes:
        p: the rate, 0 to 1.

    Raises:
        InputError: the rate is not in 0..1.
    """

    p: float

    def __post_init__(self) -> None:
        check_rate(self.p)

    def __call__(self, step: int) -> float:
        """The rate at a step, counted from 0."""
        return self.p


@dataclass(frozen=True)
class _Ramp:
    start: float
    end: float
    steps: int
    delay: int = 0

    def __post_init__(self) -> None:
        check_rate(self.start)
        check_rate(self.end)
        if self.steps < 1 or self.delay < 0:
            raise InputError(f"a schedule of {self.steps} steps after a delay of {self.delay}; expected 1 or more after 0 or more")

    def _between(self, share: float) -> float:
        # This form of the mean never leaves start..end by rounding, and meets both of them.
        return (1.0 - share) * self.start + share * self.end

    def _progress(self, step: int) -> float:
        return min(max(step - self.delay, 0) / self.steps, 1.0)


@dataclass(frozen=True)
class Linear(_Ramp):
    """From one rate to another along a line.

    Attributes:
        start: the rate until step `delay`.
        end: the rate from step `delay + steps` on.
        steps: how long the change takes, 1 or more.
        delay: how long `start` is held first, 0 or more.

    Raises:
        InputError: a rate is not in 0..1, or a number of steps is out of its range.
    """

    def __call__(self, step: int) -> float:
        """The rate at a step, counted from 0."""
        return self._between(self._progress(step))


@dataclass(frozen=True)
class Cosine(_Ramp):
    """From one rate to another along half a cosine, slow at both ends; fields and errors are those of `Linear`."""

    def __call__(self, step: int) -> float:
        """The rate at a step, counted from 0."""
        return self._between(0.5 - 0.5 * math.cos(math.pi * self._progress(step)))
