from __future__ import annotations

import pytest
from torch import nn

from qn_deploy.errors import InputError
from qn_deploy.noise.chunks import chunks, layer_list


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(nn.Identity() for _ in range(5))
        self.head = nn.Linear(2, 2)


def test_chunks_are_runs_of_neighbours_and_the_last_may_be_smaller() -> None:
    model = Net()
    found = chunks(model, "encoder.layers", 2)
    assert [[name for name, _ in chunk] for chunk in found] == [
        ["encoder.layers.0", "encoder.layers.1"],
        ["encoder.layers.2", "encoder.layers.3"],
        ["encoder.layers.4"],
    ]
    assert all(model.get_submodule(name) is layer for chunk in found for name, layer in chunk)


def test_a_sequential_is_a_list_of_layers_and_so_is_the_model_itself() -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    assert layer_list(model, "") is model
    assert [name for [(name, _)] in chunks(model, "", 1)] == ["0", "1"]


def test_what_is_no_list_of_layers_is_refused_and_the_lists_are_named() -> None:
    with pytest.raises(InputError, match=r"no module 'layers'.*'encoder\.layers'"):
        layer_list(Net(), "layers")
    with pytest.raises(InputError, match=r"'head' is a Linear; expected an nn\.ModuleList.*'encoder\.layers'"):
        layer_list(Net(), "head")
    with pytest.raises(InputError, match="no path at all"):
        layer_list(nn.Linear(2, 2), "layers")


def test_chunks_of_less_than_one_layer_are_refused() -> None:
    with pytest.raises(InputError, match="chunks of 0 layers; expected 1 or more"):
        chunks(Net(), "encoder.layers", 0)
