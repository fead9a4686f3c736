from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qn_deploy.compression.plan import file_bytes
from qn_deploy.compression.request import Request, fulfil
from qn_deploy.errors import InputError
from qn_deploy.program.capture import capture
from qn_deploy.recipe.named import recipe_of


def test_without_a_recipe_the_operators_choose_and_tuning_comes_after() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    batches = [(torch.randn(16, 16),) for _ in range(3)]
    program = capture(net, batches[0])
    stages: list[str] = []
    small = fulfil(program, Request(minutes=1e-4), batches, stage=stages.append)
    assert small.recipe is not None and small.recipe.title == "auto"
    assert [entry["stage"] for entry in small.provenance] == ["compress", "tune"]
    assert stages == ["compressing by the recipe auto", "tuning for 0.0001 minutes"]
    plain = fulfil(program, Request(recipe_of("int8")), None)
    assert {weight.bits for weight in plain.weights.values()} == {8} and not plain.ranges  # type: ignore[union-attr]
    with pytest.raises(InputError, match="tuning needs data"):
        fulfil(program, Request(minutes=1.0), None)


def test_a_rate_and_steps_for_blocks_reach_what_they_are_for() -> None:
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    batches = [(torch.randn(16, 16),) for _ in range(3)]
    program = capture(net, batches[0])
    small = fulfil(program, Request(recipe_of("int8"), rate=0.5, minutes=1e-4, block_steps=2), batches)
    compressed, tuned = (entry["config"] for entry in small.provenance)
    assert compressed["rate"] == 0.5 and tuned["blocks"]["steps"] == 2
    within = fulfil(program, Request(max_size=20_000, rate=0.25), batches)
    assert within.provenance[-1]["config"]["rate"] == 0.25


def test_a_budget_is_kept_with_tuning_too() -> None:
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
    batches = [(torch.randn(32, 64),) for _ in range(4)]
    program = capture(net, (batches[0][0][:2],))
    small = fulfil(program, Request(max_size=20_000, minutes=1e-3), batches)
    assert [entry["stage"] for entry in small.provenance] == ["plan", "compress", "tune"]
    assert 15_000 < file_bytes(small) <= 20_000


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"recipe": recipe_of("int8"), "max_size": 5}, "give one of --recipe, --max-size and --max-drop"),
        ({"max_size": 5, "max_drop": 1.0}, "give one of --recipe, --max-size and --max-drop"),
        ({"max_size": 5, "metric": lambda run: 0.0}, "--metric says what --max-drop counts; give both"),
        ({"block_steps": 8}, "--tune-blocks is the first part of tuning; say with --tune how long"),
        ({"max_drop": -1.0}, "--max-drop is -1.0; expected 0 or more points"),
        ({"max_drop": float("nan")}, "--max-drop is nan"),
    ],
)
def test_wishes_that_contradict_each_other(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Request(**wanted)


def test_a_budget_needs_data() -> None:
    program = capture(nn.Linear(4, 4), (torch.randn(2, 4),))
    with pytest.raises(InputError, match="a budget needs data"):
        fulfil(program, Request(max_size=10_000), None)
