from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import (
    BlockConfig,
    CodeConfig,
    IntWeight,
    PQWeight,
    Progress,
    TuneConfig,
    blockwise,
    calibrate,
    compress,
    tune,
)
from qn_deploy.compression.distill import distance
from qn_deploy.compression.student import learnt, student_of
from qn_deploy.configs import to_dict
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int4, Int8, Recipe, Rule, Table

RECIPE = Recipe(
    (
        Rule(Int4(), name="head.*"),
        Rule(Int8(), name="body.0.*"),
        Rule(Table(4, 8), module="Embedding"),
        Rule(Table(2, 4, codebooks=2, residual=2), module="Linear"),
    )
)
QUICK = TuneConfig(steps=60, lr=0.01, scale_lr=0.01, rest_lr=0.01)


class Net(nn.Module):
    """Tokens to logits, with one weight of every compressed kind, and biases and a norm that stay float."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 16)
        self.body = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16), nn.LayerNorm(16))
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.words(tokens)).mean(1))
        return logits


def batches(count: int = 4) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(60, (32, 7), generator=generator),) for _ in range(count)]


@pytest.fixture(scope="module")
def teacher() -> Program:
    torch.manual_seed(0)
    return capture(Net(), batches()[0])


@pytest.fixture(scope="module")
def start(teacher: Program) -> Program:
    return compress(teacher, RECIPE)


def run(program: Program, x: Tensor) -> Tensor:
    (output,) = unlifted(program.exported)(x)
    return output


def loss(program: Program, teacher: Program) -> float:
    with torch.no_grad():
        return sum(float(distance(run(program, x), run(teacher, x))) for (x,) in batches())


def same(one: Program, other: Program) -> bool:
    """Bit for bit, what is float and what is compressed."""
    first, second = student_of(one).state_dict(), student_of(other).state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def codes_of(program: Program) -> list[list[list[int]]]:
    weights = [weight for weight in program.weights.values() if isinstance(weight, PQWeight)]
    return [table.codes.tolist() for weight in weights for table in weight.tables]


class _Killed(Exception):
    pass


def kill(at: float = 0.0, task: str = "fine-tuning") -> Callable[[Progress], None]:
    """Ends a run when so much of its task is done."""

    def tell(progress: Progress) -> None:
        if progress.task == task and progress.share >= at:
            raise _Killed

    return tell


def test_everything_but_codes_and_integer_scales_learns(start: Program, teacher: Program) -> None:
    before = copy.deepcopy(student_of(start).state_dict())
    tuned = tune(start, teacher, batches(), QUICK)
    assert loss(tuned, teacher) < 0.5 * loss(start, teacher)
    after = student_of(tuned).state_dict()
    stay = {name for name in after if torch.equal(before[name], after[name])}
    assert stay == {name for name in after if name.endswith("codes") or name.endswith("weight.0.scale")} and len(stay) == 5
    assert all(torch.equal(value, before[name]) for name, value in student_of(start).state_dict().items())
    assert tuned.recipe is start.recipe and tuned.left == start.left


def test_the_result_is_what_will_be_stored(start: Program, teacher: Program) -> None:
    tuned = tune(start, teacher, batches(), QUICK)
    (x,) = batches()[0]
    assert torch.equal(run(tuned, x), student_of(tuned)(x)[0])
    assert all(torch.equal(tuned.exported.state_dict[name], weight.dequantize()) for name, weight in tuned.weights.items())
    kinds = {name: (type(weight), getattr(weight, "bits", None)) for name, weight in tuned.weights.items()}
    assert kinds == {
        "words.weight": (PQWeight, None),
        "body.0.weight": (IntWeight, 8),
        "body.2.weight": (PQWeight, None),
        "head.weight": (IntWeight, 4),
    }


def test_the_run_is_told_in_the_provenance_and_ranges_are_taken_anew(start: Program, teacher: Program) -> None:
    tuned = tune(start, teacher, batches(), QUICK)
    *before, entry = tuned.provenance
    assert list(entry.pop("sqnr_db")) == list(tuned.weights)
    assert (*before, entry) == (*start.provenance, {"stage": "tune", "config": to_dict(QUICK)})
    assert start.ranges == {} and tuned.ranges == calibrate(tuned, batches()).ranges != {}
    assert tune(start, teacher, batches(), replace(QUICK, calibration=0)).ranges == {}
    assert tune(start, teacher, batches(), replace(QUICK, calibration=1)).ranges == calibrate(tuned, batches()[:1]).ranges


def test_batches_go_by_name_as_well(start: Program, teacher: Program) -> None:
    named = [{"tokens": x} for (x,) in batches()]
    assert same(tune(start, teacher, batches(), TuneConfig(steps=3)), tune(start, teacher, named, TuneConfig(steps=3)))


def test_learning_rates_do_not_depend_on_the_unit_of_a_weight(start: Program, teacher: Program) -> None:
    student = student_of(start)
    with torch.no_grad():  # the same function: LayerNorm takes the factor away again
        for parameter in (student.get_parameter("body.2.parametrizations.weight.original1"), student.get_parameter("body.2.bias")):
            parameter.mul_(1024)
    config = TuneConfig(steps=5, warmup=0.0)
    losses: list[list[float]] = []
    for program in (start, learnt(start, student)):
        losses.append([])
        tune(program, teacher, batches(), config, progress=lambda at: losses[-1].append(at.loss or 0.0))
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0][0] != pytest.approx(losses[0][-1], rel=0.05)


def test_the_learning_rate_rises_and_falls() -> None:
    config = TuneConfig(warmup=0.2)
    assert [config.rate(share) for share in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    assert TuneConfig(warmup=0.0).rate(0.0) == 1.0


def test_hints_bring_hidden_states_closer(start: Program, teacher: Program) -> None:
    def apart(program: Program) -> float:
        (x,) = batches()[0]
        hidden, goal = (unlifted(each.exported, ("linear_1",))(x)[1] for each in (program, teacher))
        return float((hidden - goal).square().mean().detach())

    plain, hinted = (tune(start, teacher, batches(), replace(QUICK, hints=hints, hint_weight=10.0)) for hints in ((), ("body.2",)))
    assert apart(hinted) < 0.8 * apart(plain)


def test_a_loss_of_ones_own_is_followed(start: Program, teacher: Program) -> None:
    target = torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0])
    tuned = tune(start, teacher, batches(), QUICK, loss=lambda ours, theirs: (ours[0] - target).square().mean())
    assert (run(tuned, *batches()[0]).argmax(1) == 2).all()


@pytest.mark.parametrize("every", [4, 5, 8])  # saved between two moves, while gradients are summed up, and while a move is judged
@pytest.mark.parametrize("blocks", [None, BlockConfig(steps=8, batches=2, codes=CodeConfig(every=3, judges=1))])
def test_a_killed_run_in_which_codes_learn_ends_with_the_same_bits(
    start: Program, teacher: Program, tmp_path: Path, every: int, blocks: BlockConfig | None
) -> None:
    codes = CodeConfig(every=every, judges=2, share=0.2, reach=0.3, tries=6)
    config = replace(QUICK, steps=20, save_every=7, codes=codes, blocks=blocks, calibration=0)
    whole = tune(start, teacher, batches(3), config)
    with pytest.raises(_Killed):
        tune(start, teacher, batches(3), config, progress=kill(at=0.45), resume=tmp_path / "run")
    steps: list[str] = []
    resumed = tune(start, teacher, batches(3), config, progress=lambda at: steps.append(at.task), resume=tmp_path / "run")
    assert steps == ["fine-tuning"] * 13
    assert same(resumed, whole) and resumed.provenance == whole.provenance
    assert codes_of(whole) != codes_of(start) and same(tune(start, teacher, batches(3), config), whole)


def test_a_run_killed_after_its_blocks_begins_behind_them(start: Program, teacher: Program, tmp_path: Path) -> None:
    config = replace(QUICK, steps=5, blocks=BlockConfig(steps=3))
    whole = tune(start, teacher, batches(3), config)
    with pytest.raises(_Killed):
        tune(start, teacher, batches(3), config, progress=kill(task="fine-tuning"), resume=tmp_path / "run")
    tasks: list[str] = []
    resumed = tune(start, teacher, batches(3), config, progress=lambda at: tasks.append(at.task), resume=tmp_path / "run")
    assert tasks == ["fine-tuning"] * 5 and same(resumed, whole)


def test_blocks_that_learn_before_are_where_the_run_begins(start: Program, teacher: Program) -> None:
    blocks = BlockConfig(steps=20, batches=3, lr=0.01, scale_lr=0.01, rest_lr=0.01)
    tuned = tune(start, teacher, batches(), TuneConfig(steps=0, blocks=blocks))
    assert same(tuned, blockwise(start, teacher, batches(3), blocks))
    assert not same(tuned, start) and [entry["stage"] for entry in tuned.provenance] == ["compress", "tune"]


def test_codes_that_learn_are_what_will_be_stored(start: Program, teacher: Program) -> None:
    before = codes_of(start)
    tuned = tune(start, teacher, batches(), replace(QUICK, codes=CodeConfig(every=5, judges=1, share=0.2, reach=0.3)))
    (x,) = batches()[0]
    assert torch.equal(run(tuned, x), student_of(tuned)(x)[0])
    assert all(torch.equal(tuned.exported.state_dict[name], weight.dequantize()) for name, weight in tuned.weights.items())
    assert codes_of(tuned) != before == codes_of(start)


@pytest.mark.parametrize("killed_at", [0.35, 1.0])
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(start: Program, teacher: Program, tmp_path: Path, killed_at: float) -> None:
    config = TuneConfig(steps=20, save_every=7)  # no multiple of the three batches
    whole = tune(start, teacher, batches(3), config)

    with pytest.raises(_Killed):
        tune(start, teacher, batches(3), config, progress=kill(at=killed_at), resume=tmp_path / "run")
    steps: list[float] = []
    resumed = tune(start, teacher, batches(3), config, progress=lambda at: steps.append(at.share), resume=tmp_path / "run")
    assert len(steps) == (13 if killed_at < 1 else 0)
    assert same(resumed, whole) and resumed.ranges == whole.ranges


def test_the_state_of_another_run_is_refused(start: Program, teacher: Program, tmp_path: Path) -> None:
    tune(start, teacher, batches(), TuneConfig(steps=1), resume=tmp_path / "run")
    with pytest.raises(InputError, match="is the state of another run"):
        tune(start, teacher, batches(), TuneConfig(steps=2), resume=tmp_path / "run")


def test_minutes_end_a_run(start: Program, teacher: Program) -> None:
    seen: list[Progress] = []
    tune(start, teacher, batches(), TuneConfig(steps=10**9, minutes=0.005), progress=seen.append)
    assert seen[-1].share == 1.0 and all(at.share < 1 for at in seen[:-1])
    assert seen[-1].names == ("words.weight", "body.0.weight", "body.2.weight", "head.weight")


def test_no_step_changes_nothing(start: Program, teacher: Program) -> None:
    tuned = tune(start, teacher, batches(), TuneConfig(steps=0))
    assert same(tuned, start)


def test_a_loss_that_explodes_says_at_which_step(start: Program, teacher: Program) -> None:
    with pytest.raises(CompressionError, match=r"the loss became (nan|inf) while fine-tuning at step \d+ of 50"):
        tune(start, teacher, batches(), TuneConfig(steps=50, lr=1e30, rest_lr=1e30, clip=float("inf")))


@pytest.mark.parametrize("bad", [{"steps": -1}, {"save_every": 0}, {"warmup": 1.0}, {"minutes": 0.0}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected 0 or more, 1 or more"):
        TuneConfig(**bad)  # type: ignore[arg-type]
