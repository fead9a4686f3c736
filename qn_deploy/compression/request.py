"""What a user asks of compression as a whole: a recipe or none, and time to tune; and the road that leads there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from qn_deploy.compression.auto import auto_recipe
from qn_deploy.compression.compress import CompressConfig, compress
from qn_deploy.compression.progress import Tell
from qn_deploy.compression.tune import TuneConfig, tune
from qn_deploy.errors import InputError
from qn_deploy.program.program import Program
from qn_deploy.recipe import Recipe

_STEPS = 1_000_000  # of tuning: the minutes end it


@dataclass(frozen=True)
class Request:
    """What is wanted.

    Attributes:
        recipe: which weight is compressed how; None chooses by the operators.
        minutes: of tuning after compression; None for none.
        seed: of everything random.
    """

    recipe: Recipe | None = None
    minutes: float | None = None
    seed: int = 0


def fulfil(
    program: Program,
    request: Request,
    batches: Iterable[Any] | None,
    tuning: Iterable[Any] | None = None,
    stage: Callable[[str], None] = lambda name: None,
    progress: Tell | None = None,
) -> Program:
    """Compresses a float program as asked, and tunes it.

    Args:
        program: float.
        request: what is wanted.
        batches: a few hundred samples for error feedback and ranges; None for plain k-means and no ranges.
        tuning: inputs to tune with; None takes `batches`.
        stage: called with the name of each stage.
        progress: called after each weight and each step.

    Raises:
        CompressionError: a weight can't be compressed, or the program is compressed already.
        InputError: tuning without data.
    """
    if request.minutes is not None and batches is None and tuning is None:
        raise InputError("tuning needs data: --data images.npz, or --calibrate")
    recipe = request.recipe or auto_recipe(program)
    stage(f"compressing by the recipe {recipe.title}")
    small = compress(program, recipe, batches, CompressConfig(seed=request.seed), progress)
    if request.minutes is None:
        return small
    stage(f"tuning for {request.minutes:g} minutes")
    return tune(small, program, tuning or batches or (), TuneConfig(steps=_STEPS, minutes=request.minutes), progress=progress)
