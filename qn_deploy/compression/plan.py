"""A budget instead of a recipe: the program loses the least that it can within a number of bytes, or is the smallest within a loss."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import ceil, floor, inf, isfinite, log10
from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy.compression.compress import CompressConfig, compress, entry_of, float_program
from qn_deploy.compression.effects import Effects, Form, effects_of
from qn_deploy.compression.knapsack import Choice, Knapsack
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.targets import targets
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.lifted import unlifted, with_constants
from qn_deploy.program.archive import program_to_bytes
from qn_deploy.program.batches import as_batches
from qn_deploy.program.program import Batch, Program
from qn_deploy.recipe import Float, Int8, Method, Recipe, Rule

STAGE = "plan"  # in the provenance
_POINTS = 16  # of the frontier that is kept
_TRIES = 8  # to meet a size, each time by the bytes that the last one was over
_HALVINGS = 6  # of the range of sizes, to find the smallest that keeps a loss
_HELD_OUT = 4  # every fourth batch measures the loss, and is not calibrated with

Run = Callable[..., tuple[Tensor, ...]]
"""A program that runs: takes a tensor for each input, gives one for each output."""

Metric = Callable[[Run], float]
"""What a program is worth, in points; more is better."""


@dataclass(frozen=True)
class PlanConfig(CompressConfig):
    """How a budget is met.

    Attributes:
        draws: backward passes that the effects of all forms are read from.
    """

    draws: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws < 1:
            raise InputError(f"draws {self.draws}; expected 1 or more")


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
    found (`knapsack.py`); then the weights are compressed as in `compress`. The frontier of size and loss is kept in the provenance.

    Args:
        model: a float program, or a module, which is captured with the first batch; it is not changed.
        batches: inputs, a few hundred samples in all, without labels.
        max_size: bytes that the file may have at most; it never has more.
        max_drop: points of the metric that may be lost at most; the program is the smallest that was found to keep it.
        metric: what a program is worth; None takes `signal` on every fourth batch, in dB, and does not calibrate with these.
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
    config = config or PlanConfig()
    batches = list(batches)
    program = float_program(model, batches)
    given = as_batches(program, batches)
    planner = _Planner(program, given, size, config, progress)
    if max_size is not None:
        return planner.within(max_size)
    assert max_drop is not None
    if metric is None:
        held = given[_HELD_OUT - 1 :: _HELD_OUT]
        metric = signal(program, held or given)
        planner.calibration = [batch for index, batch in enumerate(given, 1) if not held or index % _HELD_OUT]
    return planner.keeping(max_drop, metric)


def signal(program: Program, batches: list[Batch]) -> Metric:
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


class _Planner:
    """The effects of all forms, and programs of any size made by them."""

    def __init__(
        self, program: Program, batches: list[Batch], size: Callable[[Program], int], config: PlanConfig, progress: Tell | None
    ) -> None:
        self.program, self.calibration, self._size, self._config, self._progress = program, batches, size, config, progress
        self._found, _ = targets(program, Recipe((Rule(Int8()),)))
        if not self._found:
            raise CompressionError("the program has no weight that can be compressed; a budget has nothing to choose")
        self._effects: Effects = effects_of(program, self._found, batches, replace(config, rounds=1), config.draws, progress)
        self._forms: list[tuple[Form, ...]] = [self._effects.forms[target.name] for target in self._found]
        self._knapsack = Knapsack(
            [[form.size for form in forms] for forms in self._forms], [[form.loss for form in forms] for forms in self._forms]
        )

    def within(self, limit: int) -> Program:
        """The program that loses least in a file of so many bytes.

        Raises:
            InputError: there is none so small.
        """
        beside = self._beside()
        for _ in range(_TRIES):
            choice = self._knapsack.best(limit - beside)
            if choice is None:
                break
            if (over := self._size(self._sketch(choice)) - limit) > 0:
                beside += over
                continue
            small = self._made(choice)
            if (over := self._size(small) - limit) <= 0:
                return small
            beside += over
        least = self._knapsack.best(self._knapsack.smallest)
        assert least is not None
        small = self._made(least)
        smallest = max(self._size(self._sketch(least)), self._size(small))
        if smallest <= limit:
            return small
        raise InputError(
            f"the smallest file of this model has {smallest:,} bytes, {smallest - limit:,} more than the {limit:,} that were asked for; "
            f"{beside:,} of them are the graph, example inputs and what stays float"
        )

    def keeping(self, drop: float, metric: Metric) -> Program:
        """The smallest program that was found to lose at most so many points.

        Raises:
            InputError: none but the float program does, or the metric gives no number for that.
        """
        whole = metric(unlifted(self.program.exported))
        if not isfinite(whole):
            raise InputError(f"the metric gives {whole} for the float model; expected a number of points")
        low, high = self._knapsack.smallest, self._knapsack.largest
        kept: Program | None = None
        least, best = inf, None  # what the one that loses least loses
        for step in range(_HALVINGS + 1):
            budget = low if step == 0 else round((low * high) ** 0.5)
            choice = self._knapsack.best(budget)
            assert choice is not None
            small = self._made(choice)
            lost = whole - metric(unlifted(small.exported))
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
            raise InputError(_out_of_reach(drop, least, None if best is None else self._size(best)))
        return kept

    def _beside(self) -> int:
        """Bytes of a file that are no weight that can be compressed, as far as one choice tells."""
        choice = self._knapsack.best(self._knapsack.smallest)
        assert choice is not None
        return self._size(self._sketch(choice)) - choice.size

    def _base(self, choice: Choice) -> Program:
        frontier = [[point.size, _db(point.loss)] for point in self._knapsack.frontier(_POINTS)]
        entry = {
            "stage": STAGE,
            "config": {"draws": self._config.draws},  # the rest stands in the entry of compress
            "bytes": choice.size,
            "sqnr_db": _db(choice.loss),
            "gap": round(choice.gap, 4),
            "frontier": frontier,
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
            provenance=(*base.provenance, entry_of(self._compress_config, dict.fromkeys(weights, 10.0))),
        )

    def _made(self, choice: Choice) -> Program:
        return compress(self._base(choice), self._recipe(choice), self.calibration, self._compress_config, self._progress)

    @property
    def _compress_config(self) -> CompressConfig:
        config = self._config
        return CompressConfig(config.damping, config.correction, config.correction_damping, config.rounds, config.seed, config.memory)

    def _recipe(self, choice: Choice) -> Recipe:
        """A rule for each weight; the form that most have is the last rule, for all that no other matches."""
        methods: dict[str, Method] = {
            target.name: each[form].method for target, each, form in zip(self._found, self._forms, choice.forms, strict=True)
        }
        usual = Counter(methods.values()).most_common(1)[0][0]
        rules = [Rule(method, name=name) for name, method in methods.items() if method != usual]
        return Recipe((*rules, *([] if isinstance(usual, Float) else [Rule(usual)])), title="budget")


def _db(loss: float) -> float | None:
    """The SQNR in dB of noise / signal; None without noise."""
    return round(-10 * log10(loss), 1) if loss > 0 else None


def _out_of_reach(drop: float, least: float, size: int | None) -> str:
    """What to say where no compressed program keeps a drop."""
    if size is None or not isfinite(least):
        return f"no compressed program loses at most {drop:g} points, nor any number of points that is finite; keep the model float"
    digits = 3 - floor(log10(least)) if least > 0 else 0
    nearest = ceil(least * 10**digits) / 10**digits  # rounded up, so that it can be kept
    return (
        f"no compressed program loses at most {drop:g} points; the smallest drop that was found is {nearest:.10g}, in a file of {size:,} "
        f"bytes. Give --max-drop {nearest:.10g} or more, or tune what a size gives"
    )
