"""A budget instead of a recipe: the program loses the least that it can within a number of bytes, or is the smallest within a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from math import inf, log10
from typing import Any

from torch import nn

from qn_deploy.compression.choices import Choices, recipe_of
from qn_deploy.compression.compress import STAGE as COMPRESS
from qn_deploy.compression.compress import CompressConfig, compress, float_program
from qn_deploy.compression.effects import Effects, Form, effects_of
from qn_deploy.compression.knapsack import Choice
from qn_deploy.compression.losses import entry_of
from qn_deploy.compression.metric import Drop, Metric, out_of_reach, signal
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.targets import targets
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.lifted import unlifted, with_constants
from qn_deploy.program.archive import program_to_bytes
from qn_deploy.program.batches import as_batches
from qn_deploy.program.program import Batch, Program
from qn_deploy.recipe import Int8, Recipe, Rule

STAGE = "plan"  # in the provenance
_POINTS = 16  # of the frontier that is kept
_TRIES = 8  # to meet a size, each time by the bytes that the last one was over
_HALVINGS = 6  # of the range of sizes, to find the smallest that keeps a loss
_HELD_OUT = 4  # every fourth batch measures the loss, and is not calibrated with while programs are compared
Way = Callable[[int], Choice | None]


@dataclass(frozen=True)
class PlanConfig(CompressConfig):
    """How a budget is met.

    Attributes:
        draws: backward passes that the effects of all forms are read from.
        confidence: in a drop, where the metric tells the points of each sample: how sure it is that other samples of the same kind lose no
            more. 0.5 takes the drop as it was measured.
    """

    draws: int = 128
    confidence: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise InputError(f"draws {self.draws}; expected 1 or more")
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"confidence {self.confidence}; expected 0.5 to below 1")


def file_bytes(program: Program) -> int:
    """The size of the program's model.pt."""
    return len(program_to_bytes(program))


def plan(
    model: Program | nn.Module,
    batches: Iterable[Any],
    max_size: int | None = None,
    max_drop: float | None = None,
    metric: Metric | None = None,
    size: Callable[[Program], int] = file_bytes,
    config: PlanConfig | None = None,
    progress: Tell | None = None,
) -> Program:
    """Compresses a trained model within a budget: each weight takes the form by which all together lose least.

    What each form of each weight does to the outputs is measured first, in a few passes (`effects.py`); then the best choice of forms is
    found (`knapsack.py`), and two rivals of it (`choices.py`); the weights are compressed by each of the three, without every fourth batch,
    and that choice is taken whose outputs are nearest to the float ones there: so no choice wins because it fits the batches that it was
    calibrated with. With all batches it becomes the program. The frontier of size and loss is kept in the provenance.

    Args:
        model: a float program, or a module, which is captured with the first batch; it is not changed.
        batches: inputs, a few hundred samples in all, without labels.
        max_size: bytes that the file may have at most; it never has more.
        max_drop: points of the metric that may be lost at most; the program is the smallest that was found to keep it.
        metric: what a program is worth. One number: the drop is kept on the samples that the metric holds. A tensor [N] of the points of
            each sample: it is kept on others of their kind too, as sure as `confidence` says, by a margin for the choice of the samples,
            which takes hundreds of them. None takes `signal` on every fourth batch, in dB, and does not calibrate with these.
        size: bytes of a program as it is written; None takes that of model.pt.
        config: seed and how inputs are used.
        progress: called after each weight and pass.

    Raises:
        InputError: neither or both of `max_size` and `max_drop`; no program is so small, or none but the float one keeps the drop: the
            message names the smallest size, or the smallest drop, that can be had.
        CompressionError: a weight can't be compressed, or the program is compressed already.
    """
    if (max_size is None) == (max_drop is None):
        raise InputError("give either max_size or max_drop: the one is kept, and the other comes out as it may")
    planner = Planner(model, batches, size, config, progress)
    if max_size is not None:
        return planner.within(max_size)
    assert max_drop is not None
    return planner.keeping(max_drop, metric)


class Planner:
    """The effects of all forms, measured once, and programs for any number of budgets; the arguments are those of `plan`."""

    def __init__(
        self,
        model: Program | nn.Module,
        batches: Iterable[Any],
        size: Callable[[Program], int] = file_bytes,
        config: PlanConfig | None = None,
        progress: Tell | None = None,
    ) -> None:
        batches = list(batches)
        self.program = float_program(model, batches)
        self._batches = as_batches(self.program, batches)
        self._size, self._config, self._progress = size, config or PlanConfig(), progress
        self._found, _ = targets(self.program, Recipe((Rule(Int8()),)))
        if not self._found:
            raise CompressionError("the program has no weight that can be compressed; a budget has nothing to choose")
        feedback = replace(self._config, rounds=1)
        self._effects: Effects = effects_of(self.program, self._found, self._batches, feedback, self._config.draws, progress)
        self._forms: list[tuple[Form, ...]] = [self._effects.forms[target.name] for target in self._found]
        self._choices = Choices(self._forms)
        self._knapsack = self._choices.measured
        self._frontier = [[point.size, _db(point.loss)] for point in self._knapsack.frontier(_POINTS)]

    def within(self, limit: int) -> Program:
        """The program that loses least in a file of so many bytes.

        Raises:
            InputError: there is none so small.
        """
        least = self._knapsack.best(self._knapsack.smallest)
        assert least is not None
        beside = self._size(self._sketch(least)) - least.size  # bytes of a file that are no weight that can be compressed
        for way in self._ranked(limit, beside):
            if (small := self._fitting(way, limit, beside)) is not None:
                return small
        small = self._made(least, self._batches)
        smallest = max(self._size(self._sketch(least)), self._size(small))
        if smallest <= limit:
            return small
        raise InputError(
            f"the smallest file of this model has {smallest:,} bytes, {smallest - limit:,} more than the {limit:,} that were asked for; "
            f"{beside:,} of them are the graph, example inputs and what stays float"
        )

    def _ranked(self, limit: int, beside: int) -> list[Way]:
        """The ways to choose, the one first whose program gives the best outputs on batches that it is not calibrated with.

        Args:
            limit: of the file.
            beside: bytes of it that are no weights, as far as is known.
        """
        found: dict[tuple[int, ...], tuple[Choice, Way]] = {}
        for way in self._choices.ways:
            choice, _ = self._sketched(way, limit, beside)
            if choice is not None:
                found.setdefault(choice.forms, (choice, way))
        if len(found) < 2:
            return [way for _, way in found.values()]
        calibration, held = self._split()
        worth = signal(self.program, held)
        ranked = [(worth(unlifted(self._made(choice, calibration).exported)), way) for choice, way in found.values()]
        return [way for _, way in sorted(ranked, key=lambda entry: entry[0], reverse=True)]

    def _fitting(self, way: Way, limit: int, beside: int) -> Program | None:
        """The program of one way to choose within a file of so many bytes, unless it finds none."""
        for _ in range(_TRIES):
            choice, beside = self._sketched(way, limit, beside)
            if choice is None:
                return None
            small = self._made(choice, self._batches)
            if (over := self._size(small) - limit) <= 0:
                return small
            beside += over
        return None

    def _sketched(self, way: Way, limit: int, beside: int) -> tuple[Choice | None, int]:
        """A choice whose sketch is within the limit, and the bytes beside its weights."""
        for _ in range(_TRIES):
            choice = way(limit - beside)
            if choice is None or (over := self._size(self._sketch(choice)) - limit) <= 0:
                return choice, beside
            beside += over
        return None, beside

    def _split(self) -> tuple[list[Batch], list[Batch]]:
        """Batches to calibrate with, and others to judge by; all for both where there are few."""
        held = self._batches[_HELD_OUT - 1 :: _HELD_OUT]
        return [batch for index, batch in enumerate(self._batches, 1) if not held or index % _HELD_OUT], held or self._batches

    def keeping(self, drop: float, metric: Metric | None = None) -> Program:
        """The smallest program that was found to lose at most so many points.

        Raises:
            InputError: none but the float program does, or the metric does not give points.
        """
        calibration = self._batches
        if metric is None:
            calibration, held = self._split()
            metric = signal(self.program, held)
        drops = Drop(metric, self.program, self._config.confidence)
        low, high = self._knapsack.smallest, self._knapsack.largest
        kept: Program | None = None
        least, best = inf, None  # what the one that loses least loses
        for step in range(_HALVINGS + 1):
            budget = low if step == 0 else round((low * high) ** 0.5)
            choice = self._knapsack.best(budget)
            assert choice is not None
            small = self._made(choice, calibration)
            lost = drops.of(small)
            if self._progress:
                self._progress(Progress(2, 3, "measuring the drop", (), (step + 1) / (_HALVINGS + 1)))
            if small.weights and lost < least:
                least, best = lost, small
            if lost <= drop and small.weights:
                kept, high = small, budget
                if step == 0:
                    break
            else:
                low = budget
        if kept is None:
            raise InputError(out_of_reach(drop, least, None if best is None else self._size(best)))
        return kept

    def _base(self, choice: Choice) -> Program:
        entry = {
            "stage": STAGE,
            "config": {"draws": self._config.draws, "confidence": self._config.confidence},  # the rest stands in the entry of compress
            "bytes": choice.size,
            "sqnr_db": _db(choice.loss),
            "gap": round(choice.gap, 4),
            "frontier": self._frontier,
        }
        return replace(self.program, provenance=(*self.program.provenance, entry))

    def _sketch(self, choice: Choice) -> Program:
        """The program with the weights as they were tried: as large as the one that is made in the end, but for a few digits."""
        forms = {target.name: each[form] for target, each, form in zip(self._found, self._forms, choice.forms, strict=True)}
        weights = {name: form.weight for name, form in forms.items() if form.weight is not None}
        values = {name: weight.dequantize() for name, weight in weights.items()}
        base = self._base(choice)
        recipe = self._recipe(choice)
        return replace(
            base,
            exported=with_constants(base.exported, values),
            weights=weights,
            ranges=self._effects.ranges,
            recipe=recipe,
            left={**base.left, **targets(self.program, recipe)[1]},
            provenance=(*base.provenance, entry_of(COMPRESS, self._compress_config, dict.fromkeys(weights, 10.0))),
        )

    def _made(self, choice: Choice, batches: list[Batch]) -> Program:
        return compress(self._base(choice), self._recipe(choice), batches, self._compress_config, self._progress)

    @property
    def _compress_config(self) -> CompressConfig:
        return CompressConfig(**{field.name: getattr(self._config, field.name) for field in fields(CompressConfig)})

    def _recipe(self, choice: Choice) -> Recipe:
        return recipe_of(
            {target.name: each[form].method for target, each, form in zip(self._found, self._forms, choice.forms, strict=True)}
        )


def _db(loss: float) -> float | None:
    """The SQNR in dB of noise / signal; None without noise."""
    return round(-10 * log10(loss), 1) if loss > 0 else None
