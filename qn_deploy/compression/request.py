"""What a user asks of compression as a whole: a recipe or a budget, and time to tune; and the road that leads there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from qn_deploy.compression.auto import auto_recipe
from qn_deploy.compression.blockwise import BlockConfig
from qn_deploy.compression.compress import CompressConfig, compress
from qn_deploy.compression.metric import Metric
from qn_deploy.compression.plan import PlanConfig, file_bytes, plan
from qn_deploy.compression.progress import Tell
from qn_deploy.compression.tune import TuneConfig, tune
from qn_deploy.errors import InputError
from qn_deploy.program.program import Program
from qn_deploy.recipe import Recipe

_STEPS = 1_000_000  # of tuning: the minutes end it
_ROOM = 2_048  # bytes of a file that are left for what tuning adds: its entry in the provenance, longer numbers


@dataclass(frozen=True)
class Request:
    """What is wanted. With neither recipe nor budget the operators choose the recipe.

    Attributes:
        recipe: which weight is compressed how.
        max_size: bytes that the file may have.
        max_drop: points of the metric that may be lost before tuning.
        metric: what a program is worth; None for dB of signal, see `plan`.
        size: bytes of a program as it is written, which `max_size` limits.
        rate: what bytes of an entropy-coded file count beside what is lost, see `CompressConfig`.
        minutes: of tuning after compression; None for none.
        block_steps: of tuning for each block of layers, one block after the other, in the first part of these minutes; 0 for none.
        seed: of everything random.

    Raises:
        InputError: more than one of recipe, `max_size` and `max_drop`, a metric without `max_drop`, steps for blocks without minutes, or a
            number that makes no sense.
    """

    recipe: Recipe | None = None
    max_size: int | None = None
    max_drop: float | None = None
    metric: Metric | None = None
    size: Callable[[Program], int] = file_bytes
    rate: float = 0.0
    minutes: float | None = None
    block_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.recipe, self.max_size, self.max_drop)) > 1:
            raise InputError("give one of --recipe, --max-size and --max-drop: each of them decides what every weight becomes")
        if self.metric is not None and self.max_drop is None:
            raise InputError("--metric says what --max-drop counts; give both")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise InputError(f"--max-drop is {self.max_drop}; expected 0 or more points")
        if not 0 <= self.rate < inf:
            raise InputError(f"--rate is {self.rate}; expected 0 or more")
        if self.block_steps and self.minutes is None:
            raise InputError("--tune-blocks is the first part of tuning; say with --tune how long all of it may take")

    @property
    def has_budget(self) -> bool:
        """True if there is a limit instead of a recipe."""
        return self.max_size is not None or self.max_drop is not None


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
        InputError: tuning or a budget without data, or no file can be so small.
    """
    if request.minutes is not None and batches is None and tuning is None:
        raise InputError("tuning needs data: --data images.npz, or --calibrate")
    small = _compressed(program, request, batches, stage, progress)
    if request.minutes is None:
        return small
    stage(f"tuning for {request.minutes:g} minutes")
    blocks = BlockConfig(request.block_steps) if request.block_steps else None
    config = TuneConfig(steps=_STEPS, minutes=request.minutes, blocks=blocks)
    tuned = tune(small, program, tuning or batches or (), config, progress=progress)
    if request.max_size is not None and (over := request.size(tuned) - request.max_size) > 0:
        return replace(small, notes=(*small.notes, f"the tuned file would have {over:,} bytes too many, so this is the one before tuning"))
    return tuned


def _compressed(
    program: Program, request: Request, batches: Iterable[Any] | None, stage: Callable[[str], None], progress: Tell | None
) -> Program:
    if not request.has_budget:
        recipe = request.recipe or auto_recipe(program)
        stage(f"compressing by the recipe {recipe.title}")
        return compress(program, recipe, batches, CompressConfig(seed=request.seed, rate=request.rate), progress)
    if batches is None:
        raise InputError("a budget needs data to measure what each layer does to the outputs: --calibrate data.npz")
    stage("measuring what each layer does to the outputs, and compressing within the budget")
    room = 0 if request.minutes is None else _ROOM
    limit = None if request.max_size is None else request.max_size - room
    config = PlanConfig(seed=request.seed, rate=request.rate)
    return plan(program, batches, limit, request.max_drop, request.metric, request.size, config, progress)
