from __future__ import annotations

import pytest
import torch
from torch import nn

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
