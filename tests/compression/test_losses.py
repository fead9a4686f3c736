from __future__ import annotations

from math import log10

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import IPQConfig, TuneConfig, compress, ipq, tune
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.archive import program_from_bytes, program_to_bytes
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Float, Int8, Recipe, Rule, Table


class Three(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = self.first(x)
        second = self.second(first.relu())
        return first, second, self.last(second.relu())


def decibels(ours: Tensor, theirs: Tensor) -> float:
    return float(10 * torch.log10(theirs.square().sum() / (ours - theirs).square().sum()))


RECIPE = Recipe((Rule(Float(), name="first.*"), Rule(Int8(), name="second.*"), Rule(Table(4, 16))))
BATCHES = [(torch.randn(count, 16, generator=torch.Generator().manual_seed(count)),) for count in (8, 3)]


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Three(), BATCHES[0])


@torch.no_grad()
def measured(small: Program, program: Program) -> dict[str, float]:
    """What the layers with compressed weights lose, by their outputs."""
    ours, theirs = (
        [torch.cat(each) for each in zip(*(unlifted(p.exported)(*batch) for batch in BATCHES), strict=True)] for p in (small, program)
    )
    return {f"{name}.weight": round(decibels(ours[i], theirs[i]), 1) for i, name in ((1, "second"), (2, "last"))}


def test_each_layer_has_the_loss_of_what_it_gives(program: Program) -> None:
    small = compress(program, RECIPE, BATCHES)
    (entry,) = small.provenance
    assert entry["sqnr_db"] == measured(small, program)
    assert entry["sqnr_db"]["second.weight"] > entry["sqnr_db"]["last.weight"] > 10 * log10(2)
    assert program_from_bytes(program_to_bytes(small)).provenance == small.provenance
    assert "sqnr_db" not in compress(program, RECIPE).provenance[0]


def test_what_has_learnt_has_the_loss_of_what_it_gives_now(program: Program) -> None:
    learnt = ipq(program, RECIPE, BATCHES, IPQConfig(steps=5, final_steps=5))
    assert learnt.provenance[-1]["sqnr_db"] == measured(learnt, program)
    small = compress(program, RECIPE, BATCHES)
    tuned = tune(small, program, BATCHES, TuneConfig(steps=5))
    before, after = tuned.provenance
    assert after["sqnr_db"] == measured(tuned, program) != measured(small, program)
    assert before == {key: value for key, value in small.provenance[0].items() if key != "sqnr_db"}  # out of date
    unknown = tune(small, program, BATCHES, TuneConfig(steps=5, calibration=0))
    assert [entry.get("sqnr_db") for entry in unknown.provenance] == [small.provenance[0]["sqnr_db"], None]


def test_beside_another_network_no_layer_has_a_loss(program: Program) -> None:
    class Other(Three):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            first, second, last = super().forward(x)
            return first, second, last + 1

    wide = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    tuned = tune(compress(program, RECIPE), capture(Other(), BATCHES[0]), BATCHES, TuneConfig(steps=1))
    assert tuned.ranges and "sqnr_db" not in tuned.provenance[-1]
    by_itself = ipq(wide, Recipe((Rule(Int8()),)), BATCHES, IPQConfig(steps=1, final_steps=0), teacher=nn.Linear(16, 8))
    assert list(by_itself.provenance[-1]["sqnr_db"]) == ["0.weight", "1.weight"]  # to the model, not to the teacher
