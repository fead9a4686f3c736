from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from qn_deploy.recipe.parameters import compressible


def test_compressible_weights_come_in_the_models_order_and_tied_ones_by_each_name() -> None:
    model = nn.Sequential(nn.Embedding(4, 8), nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 4), nn.Conv3d(1, 1, 1))
    model[3].weight = model[0].weight
    found = list(compressible(model))
    assert [slot.name for slot in found] == ["0.weight", "2.0.weight", "3.weight"]
    assert found[0].weight is found[2].weight
    assert [slot.name for slot in compressible(nn.Linear(2, 2))] == ["weight"]


def test_attention_and_recurrent_layers_hold_several() -> None:
    attention = [slot.name for slot in compressible(nn.MultiheadAttention(4, 2))]
    assert attention == ["in_proj_weight", "out_proj.weight"]
    assert [slot.leaf for slot in compressible(nn.MultiheadAttention(4, 2, kdim=3))][:3] == [
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
    ]
    assert [slot.leaf for slot in compressible(nn.LSTM(4, 3, bidirectional=True))] == [
        "weight_ih_l0",
        "weight_hh_l0",
        "weight_ih_l0_reverse",
        "weight_hh_l0_reverse",
    ]


def test_a_weight_under_a_parametrization_is_not_read() -> None:
    class Refuses(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            raise AssertionError("read")

    linear = nn.Linear(2, 2)
    parametrize.register_parametrization(linear, "weight", Refuses(), unsafe=True)
    assert [slot.name for slot in compressible(linear)] == ["weight"]
