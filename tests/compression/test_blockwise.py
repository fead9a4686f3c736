from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import PQWeight, Progress, compress
from qn_deploy.compression.blockwise import BlockConfig, blockwise
from qn_deploy.compression.code_moves import CodeConfig
from qn_deploy.compression.student import student_of
from qn_deploy.configs import to_dict
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table
from tests.compression.test_tune import same

RECIPE = Recipe((Rule(Int8(), name="*.up.*"), Rule(Table(2, 4, residual=2), name="body.1.*"), Rule(Table(2, 8), module="*")))
QUICK = BlockConfig(steps=40, lr=0.01, scale_lr=0.01, rest_lr=0.01)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.down(torch.relu(self.up(x)))
        return added


class Net(nn.Module):
    """Tokens, which the head reads as well, two residual blocks, and a mask from the first to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.first = nn.Linear(16, 16)
        self.body = nn.Sequential(Residual(), Residual())
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens > 3)[..., None].float()
        scores: Tensor = self.head(self.body(self.first(self.words(tokens) * mask)) * mask)
        return scores


def batches(count: int = 4, size: int = 16) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randint(30, (size, 7), generator=generator),) for _ in range(count)]


@pytest.fixture(scope="module")
def teacher() -> Program:
    torch.manual_seed(0)
    return capture(Net(), batches()[0])


@pytest.fixture(scope="module")
def start(teacher: Program) -> Program:
    return compress(teacher, RECIPE)


def apart(program: Program, teacher: Program) -> dict[str, float]:
    """How far the values between blocks are from the float ones, by the node."""
    ends = ("linear", "add", "add_1", "linear_5")
    (x,) = batches()[0]
    with torch.no_grad():
        ours, theirs = (unlifted(each.exported, ends)(x)[1:] for each in (program, teacher))
    return {name: float((one - other).square().mean()) for name, one, other in zip(ends, ours, theirs, strict=True)}


@pytest.mark.parametrize("codes", [None, CodeConfig(every=5, judges=1, share=0.1)])
def test_every_block_comes_closer_to_the_float_one(start: Program, teacher: Program, codes: CodeConfig | None) -> None:
    done = blockwise(start, teacher, batches(), replace(QUICK, layers=1, codes=codes))
    before, after = apart(start, teacher), apart(done, teacher)
    assert all(after[name] < 0.95 * before[name] for name in before), (before, after)
    moved = [name for name in start.weights if not torch.equal(start.exported.state_dict[name], done.exported.state_dict[name])]
    assert moved == ["first.weight", *(f"body.{i}.{layer}.weight" for i in (0, 1) for layer in ("up", "down"))]
    assert list(done.weights) == list(start.weights)
    assert all(torch.equal(done.exported.state_dict[name], weight.dequantize()) for name, weight in done.weights.items())
    assert not torch.equal(start.exported.state_dict["body.0.up.bias"], done.exported.state_dict["body.0.up.bias"])
    tables = [(one, done.weights[name]) for name, one in start.weights.items() if isinstance(one, PQWeight)]
    assert any(not torch.equal(one.codes, other.codes) for one, other in tables if isinstance(other, PQWeight)) == (codes is not None)


def test_the_same_call_gives_the_same_bits_and_changes_nothing_of_its_own(start: Program, teacher: Program) -> None:
    config = replace(QUICK, codes=CodeConfig(every=5, judges=1, share=0.1))
    untouched = student_of(start).state_dict()
    one, other = (blockwise(start, teacher, batches(), replace(config, memory=memory)) for memory in (256, 0))
    assert same(one, replace(other)) and one.weights.keys() == other.weights.keys()
    assert all(torch.equal(value, untouched[name]) for name, value in student_of(start).state_dict().items())


def test_a_block_that_comes_no_closer_stays_as_it_was(start: Program, teacher: Program) -> None:
    done = blockwise(start, teacher, batches(), replace(QUICK, steps=1, lr=5.0, scale_lr=5.0, rest_lr=5.0))
    assert same(done, start)


def test_what_it_does_is_told(start: Program, teacher: Program) -> None:
    seen: list[Progress] = []
    config = replace(QUICK, steps=3)
    done = blockwise(start, teacher, batches(), config, seen.append)
    assert done.provenance == (*start.provenance, {"stage": "blockwise", "config": to_dict(config)})
    assert {at.task for at in seen} == {"fine-tuning a block"} and {at.share for at in seen} == {1 / 3, 2 / 3, 1.0}
    assert {at.names for at in seen} == {
        ("first.weight",),  # the tied words are its second layer, and stay
        ("body.0.up.weight", "body.0.down.weight"),
        ("body.1.up.weight", "body.1.down.weight"),
    }


def test_no_step_changes_nothing(start: Program, teacher: Program) -> None:
    assert same(blockwise(start, teacher, batches(), replace(QUICK, steps=0)), start)


def test_a_teacher_of_another_graph_is_refused(start: Program) -> None:
    other = capture(nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 30)), batches()[0])
    with pytest.raises(InputError, match="this teacher has another graph"):
        blockwise(start, other, batches())


def test_a_loss_that_explodes_names_the_block(start: Program, teacher: Program) -> None:
    with pytest.raises(CompressionError, match=r"while fine-tuning the block of first\.weight"):
        blockwise(start, teacher, batches(), replace(QUICK, lr=1e30, scale_lr=1e30, rest_lr=1e30))


@pytest.mark.parametrize("bad", [{"steps": -1}, {"batches": 0}, {"layers": 0}])
def test_settings_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected 0 or more, 1 or more, 1 or more"):
        BlockConfig(**bad)
