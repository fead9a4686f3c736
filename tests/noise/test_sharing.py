from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qn_deploy import load, noise, save
from qn_deploy.compression import compress
from qn_deploy.errors import InputError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.graph.sites import weights
from qn_deploy.noise.layerdrop import attach_layer_drop
from qn_deploy.noise.prune import prune_every_other
from qn_deploy.noise.sharing import share_chunks
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Recipe, Rule, Table

torch.set_num_threads(1)

RECIPE = Recipe((Rule(Table(4, 4), module="Linear"),))
INPUTS = (torch.randn(4, 16, generator=torch.Generator().manual_seed(1)),)


class Block(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.down(self.up(x).relu()))


class Net(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_the_layers_of_a_chunk_have_the_first_ones_parameters() -> None:
    model = Net(5)
    replaced = share_chunks(model, "layers")
    leaves = ["up.weight", "up.bias", "down.weight", "down.bias", "norm.weight", "norm.bias"]
    assert replaced == [f"layers.{index}.{leaf}" for index in (1, 3) for leaf in leaves]
    for index, first in enumerate([0, 0, 2, 2, 4]):
        assert all(model.get_parameter(f"layers.{index}.{leaf}") is model.get_parameter(f"layers.{first}.{leaf}") for leaf in leaves)
    assert len(list(model.parameters())) == 3 * len(leaves)


def test_statistics_stay_each_layers_own() -> None:
    model = Net()
    share_chunks(model, "layers", 4)
    model(torch.randn(8, 16))
    means = [model.get_buffer(f"layers.{index}.norm.running_mean") for index in range(4)]
    assert len({float(mean.sum()) for mean in means}) == 4


def test_a_shared_parameter_gets_the_gradients_of_all_its_layers() -> None:
    shared, plain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    share_chunks(shared, "")
    plain.load_state_dict(shared.state_dict())
    for model in (shared, plain):
        model(torch.ones(2, 3)).square().sum().backward()
    expected = sum(layer.weight.grad for layer in plain)
    torch.testing.assert_close(shared[0].weight.grad, expected)


@pytest.fixture(scope="module")
def compressed() -> Program:
    """Four layers that share two by two."""
    model = Net()
    share_chunks(model, "layers")
    return compress(capture(model, INPUTS), RECIPE)


def test_compression_makes_one_table_for_a_chunk(compressed: Program) -> None:
    readers = {weight.name: len(weight.readers) for weight in weights(compressed.exported)}
    assert {name: count for name, count in readers.items() if "up" in name} == {"layers.0.up.weight": 2, "layers.2.up.weight": 2}
    down = ("layers.0.down.weight", "layers.0.down.weight_1", "layers.2.down.weight", "layers.2.down.weight_1")
    assert {name: count for name, count in readers.items() if "down" in name} == dict.fromkeys(down, 1)  # each meets a norm of its own
    assert set(compressed.weights) == set(readers)


def test_the_file_stores_the_table_of_a_chunk_once(compressed: Program, tmp_path: Path) -> None:
    save(compressed, tmp_path / "model.pt")
    program = load(tmp_path / "model.pt")
    assert list(program.weights) == list(compressed.weights)
    torch.testing.assert_close(unlifted(program.exported)(*INPUTS), unlifted(compressed.exported)(*INPUTS))


def test_sharing_goes_with_noise_layer_drop_and_pruning() -> None:
    model = Net()
    share_chunks(model, "layers")
    noise.attach(model, RECIPE, p=0.5)
    attach_layer_drop(model, "layers", 0.5, chunk=2)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters() if "original" in name}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(12):  # each chunk is skipped in half of them
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
    assert len(before) == 4 and not any(torch.equal(model.get_parameter(name), old) for name, old in before.items())
    noise.remove(model)
    assert prune_every_other(model, "layers", 2) == [0, 1]
    assert model.get_parameter("layers.0.up.weight") is model.get_parameter("layers.1.up.weight")


def test_layers_that_differ_are_refused_and_nothing_is_shared() -> None:
    model = nn.Sequential(Block(), Block(), Block(), Block(8))
    with pytest.raises(InputError, match=r"3 can't share the parameters of 2: down\.bias is torch\.float32 \[8\] .*\[16\] here"):
        share_chunks(model, "")
    assert model.get_parameter("0.up.weight") is not model.get_parameter("1.up.weight")
    with pytest.raises(InputError, match="bias is missing there"):
        share_chunks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False)), "")


def test_a_model_with_noise_must_share_first() -> None:
    model = Net()
    noise.attach(model, RECIPE)
    with pytest.raises(InputError, match=r"layers\.0\.up already carries a parametrization.*share first"):
        share_chunks(model, "layers")


def test_chunks_of_one_are_refused() -> None:
    with pytest.raises(InputError, match="1 by 1; expected chunks of 2 or more"):
        share_chunks(Net(), "layers", 1)
