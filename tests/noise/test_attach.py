from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from qn_deploy import noise
from qn_deploy.noise.integer import HistogramGrid, MinMaxGrid, StoredGrid
from qn_deploy.noise.product import Clusters, ExactNoise, MeanNoise, ZeroNoise
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Rule, Table, conv_net, transformer
from qn_deploy.weights.compressed import IntWeight
from tests.noise.models import INT8, TABLES, a_batch, a_net, bits, gradient, noises, original, seen


def test_attach_names_the_noised_parameters_in_the_models_order() -> None:
    assert noise.attach(a_net(), conv_net()) == ["token.weight", "conv.weight", "point.weight", "depth.weight"]


def test_the_recipe_decides_which_noise_a_weight_gets() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4))
    names = noise.attach(model, Recipe((Rule(Table(4, 2), name="0.*"), Rule(Int8(), name="1.*"), Rule(Float()))), p=1.0)
    assert names == ["0.weight", "1.weight"]
    assert not seen(model[0]).any()
    assert torch.equal(seen(model[1]), IntWeight.from_float(original(model[1])).dequantize())
    assert type(model[2]) is nn.Linear


def test_a_block_size_that_does_not_divide_a_row_means_int8_noise() -> None:
    model = nn.Linear(10, 4)
    clean = model.weight
    assert noise.attach(model, TABLES, p=1.0) == ["weight"]
    assert torch.equal(model.weight, IntWeight.from_float(clean).dequantize())


def test_int8_noise_of_an_embedding_has_one_scale_as_compression_stores_it() -> None:
    model = nn.Embedding(10, 4)
    clean = model.weight
    noise.attach(model, INT8, p=1.0)
    assert torch.equal(model.weight, IntWeight.from_float(clean, per_channel=False).dequantize())


def test_int4_noise_is_the_grid_that_compression_stores() -> None:
    model = nn.Linear(64, 8)
    clean = model.weight
    noise.attach(model, Recipe((Rule(Int4()),)), p=1.0)
    assert torch.equal(model.weight, IntWeight.from_float(clean, method=Int4()).dequantize())


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (noise.Options(), [ZeroNoise]),
        (noise.Options("mean"), [MeanNoise]),
        (noise.Options("exact"), [ExactNoise]),
        (noise.Options(unit="clusters"), [Clusters]),
        (noise.Options("exact", "clusters", over=Int8()), [Clusters, StoredGrid]),
        (noise.Options(over=Int8(), grid="tensor"), [ZeroNoise, MinMaxGrid]),
    ],
)
def test_options_choose_the_noise_of_a_table(options: noise.Options, kinds: list[type]) -> None:
    model = nn.Linear(16, 16)
    noise.attach(model, TABLES, options=options)
    assert [type(part) for part in noises(model)] == kinds


@pytest.mark.parametrize(
    ("grid", "kind"), [("stored", StoredGrid), ("channel", MinMaxGrid), ("tensor", MinMaxGrid), ("histogram", HistogramGrid)]
)
@pytest.mark.parametrize("method", [Int8(), Int4()], ids=["int8", "int4"])
def test_options_choose_the_grid_of_integers(method: Int8 | Int4, grid: Any, kind: type) -> None:
    model = nn.Linear(16, 16)
    noise.attach(model, Recipe((Rule(method),)), p=1.0, options=noise.Options(grid=grid))
    assert [type(part) for part in noises(model)] == [kind]
    assert len(set(model.weight[0].tolist())) <= 2 ** (8 if isinstance(method, Int8) else 4)


def test_int8_over_a_table_rounds_what_the_table_noise_left() -> None:
    model = nn.Linear(64, 64)
    noise.attach(model, TABLES, p=0.5, options=noise.Options(over=Int8()))
    with torch.no_grad():
        model.get_parameter("parametrizations.weight.original").uniform_(0.1, 1.0)
    weight, clean = seen(model), original(model)
    zero, rounded = (weight == 0).float().mean(), ((weight != 0) & (weight != clean)).float().mean()
    assert 0.4 < float(zero) < 0.6 and 0.2 < float(rounded) < 0.3


def test_eval_mode_is_exact() -> None:
    model = a_net().eval()
    clean, expected = model.conv.weight, model(*a_batch())
    noise.attach(model, conv_net(), p=1.0)
    assert model.conv.weight is clean
    assert torch.equal(model(*a_batch()), expected)
    assert not torch.equal(model.train().conv.weight, clean)


def test_a_layer_frozen_in_eval_mode_stays_exact_while_the_rest_trains() -> None:
    model = a_net().train()
    model.conv.eval()
    clean = model.conv.weight
    noise.attach(model, conv_net(), p=1.0)
    assert model.conv.weight is clean
    assert not torch.equal(seen(model.point), original(model.point))


@pytest.mark.parametrize("recipe", [TABLES, INT8, conv_net(), transformer()], ids=["tables", "int8", "conv_net", "transformer"])
def test_training_never_writes_into_the_weight(recipe: Recipe) -> None:
    model = a_net()
    noise.attach(model, recipe, p=0.5)
    before = bits(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(3):
        model(*a_batch()).square().sum().backward()
        optimizer.step()
    assert bits(model) == before


def test_zeroed_blocks_get_the_same_gradient_as_the_others() -> None:
    model = nn.Linear(8, 3)
    noise.attach(model, TABLES, p=1.0)
    model(torch.arange(8.0)[None]).sum().backward()
    assert gradient(model).tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("recipe", [TABLES, INT8], ids=["tables", "int8"])
def test_weight_and_gradient_keep_their_dtype(recipe: Recipe, dtype: torch.dtype) -> None:
    model = nn.Linear(8, 4).to(dtype)
    noise.attach(model, recipe, p=0.5)
    assert model.weight.dtype == dtype
    model(torch.ones(1, 8, dtype=dtype)).sum().backward()
    assert gradient(model).dtype == dtype


def test_a_sparse_embedding_keeps_its_sparse_gradient() -> None:
    model = nn.Embedding(10, 8, sparse=True)
    noise.attach(model, TABLES, p=0.5)
    model(torch.tensor([2, 7])).sum().backward()
    assert gradient(model).is_sparse


def test_an_optimizer_made_before_attach_goes_on_training_the_weights() -> None:
    model = a_net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    noise.attach(model, conv_net(), p=0.2)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(*a_batch()), torch.tensor([1, 2, 3, 4]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    noise.remove(model)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert {id(p) for p in model.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_manual_seed_repeats_the_noise_and_each_read_draws_anew() -> None:
    model = nn.Linear(64, 64)
    noise.attach(model, TABLES, p=0.5)
    torch.manual_seed(7)
    first, second = model.weight, model.weight
    torch.manual_seed(7)
    assert torch.equal(model.weight, first) and not torch.equal(second, first)


@pytest.mark.parametrize("options", [noise.Options(), noise.Options("exact", "clusters", over=Int4())], ids=["proxy", "learnt"])
def test_attach_and_refresh_spend_no_random_number(options: noise.Options) -> None:
    model = a_net()
    before = torch.get_rng_state()
    noise.attach(model, TABLES, p=0.5, options=options)
    noise.refresh(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_rate_0_shows_the_clean_weight() -> None:
    model = a_net().train()
    clean = model.conv.weight
    noise.attach(model, conv_net(), p=0.0)
    assert model.conv.weight is clean


def test_set_rate_changes_all_noise() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Conv2d(8, 8, 1))
    noise.attach(model, TABLES, p=0.0)
    assert all(seen(module).all() for module in model)
    noise.set_rate(model, 1.0)
    assert not any(seen(module).any() for module in model)


def test_tied_weights_stay_tied_and_both_readers_are_noised() -> None:
    model = a_net()
    shared, count = model.token.weight, len(list(model.parameters()))
    assert "head.weight" not in noise.attach(model, TABLES, p=1.0)
    assert original(model.token) is shared
    assert original(model.head) is shared
    assert not model.token.weight.any() and not model.head.weight.any()
    assert len(list(model.parameters())) == count
    noise.remove(model)
    assert model.token.weight is shared and model.head.weight is shared


def test_tied_weights_get_the_noise_of_their_first_name() -> None:
    model = a_net()
    noise.attach(model, Recipe((Rule(Int8(), name="token.weight"), Rule(Table(4, 2), name="head.weight"))), p=1.0)
    assert torch.equal(model.head.weight, model.token.weight)
    assert model.head.weight.any()


def test_a_module_at_two_paths_gets_one_noise() -> None:
    shared = nn.Linear(8, 8)
    assert noise.attach(nn.Sequential(shared, shared), TABLES) == ["0.weight"]
    assert sum(isinstance(module, noise.QuantNoise) for module in shared.modules()) == 1
