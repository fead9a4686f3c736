from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qn_deploy.errors import InputError
from qn_deploy.noise.layerdrop import attach_layer_drop
from qn_deploy.noise.prune import keep_layers, prune_every_other

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.parametrize(
    ("depth", "chunk", "kept"),
    [
        (6, 1, [0, 2, 4]),
        (5, 1, [0, 2, 4]),
        (8, 2, [0, 1, 4, 5]),
        (6, 2, [0, 1, 4, 5]),
        (7, 2, [0, 1, 4, 5]),
        (1, 1, [0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_every_other_chunk_stays(depth: int, chunk: int, kept: list[int]) -> None:
    model = Net(depth)
    layers = list(model.layers)
    assert prune_every_other(model, "layers", chunk) == kept
    assert list(model.layers) == [layers[index] for index in kept]


@settings(max_examples=30, deadline=None)
@given(depth=st.integers(1, 8), data=st.data())
def test_keep_leaves_these_layers_in_their_order_numbered_anew(depth: int, data: st.DataObject) -> None:
    keep = data.draw(st.lists(st.integers(0, depth - 1), min_size=1, unique=True))
    model = Net(depth)
    layers = list(model.layers)
    x = torch.randn(3, 2)
    expected = x
    for index in sorted(keep):
        expected = expected + layers[index](expected)
    keep_layers(model, "layers", keep)
    assert torch.equal(model(x), expected)
    assert [name for name in model.state_dict() if "weight" in name] == [f"layers.{index}.weight" for index in range(len(keep))]


def test_pruning_takes_layer_drop_off_what_is_left() -> None:
    model = Net(4)
    attach_layer_drop(model, "layers", 1.0, chunk=2)
    keep_layers(model, "layers", [1, 2])
    assert all("forward" not in vars(layer) for layer in model.layers)


@pytest.mark.parametrize("keep", [[], [4], [-1], [0, 9]])
def test_indices_out_of_range_are_refused_and_nothing_is_pruned(keep: list[int]) -> None:
    model = Net(4)
    with pytest.raises(InputError, match=r"can't keep layers .* of 'layers'; expected one or more of 0 to 3"):
        keep_layers(model, "layers", keep)
    assert len(model.layers) == 4
