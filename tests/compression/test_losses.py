from __future__ import annotations

from math import log10

import torch
from torch import Tensor, nn

from qn_deploy.compression.compress import compress
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.archive import program_from_bytes, program_to_bytes
from qn_deploy.program.capture import capture
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


def test_each_layer_has_the_loss_of_what_it_gives() -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 16),), (torch.randn(3, 16),)]
    program = capture(Three(), (batches[0][0],))
    recipe = Recipe((Rule(Float(), name="first.*"), Rule(Int8(), name="second.*"), Rule(Table(4, 16))))
    small = compress(program, recipe, batches)
    (entry,) = small.provenance
    with torch.no_grad():
        runs = [
            [torch.cat(each) for each in zip(*(unlifted(p.exported)(*batch) for batch in batches), strict=True)] for p in (small, program)
        ]
    expected = {name: decibels(ours, theirs) for name, ours, theirs in zip(("second", "last"), runs[0][1:], runs[1][1:], strict=True)}
    assert {name: round(value, 1) for name, value in expected.items()} == {
        name.removesuffix(".weight"): value for name, value in entry["sqnr_db"].items()
    }
    assert entry["sqnr_db"]["second.weight"] > entry["sqnr_db"]["last.weight"] > 10 * log10(2)
    assert program_from_bytes(program_to_bytes(small)).provenance == small.provenance
    assert "sqnr_db" not in compress(program, recipe).provenance[0]
