from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qn_deploy import noise
from qn_deploy.compress.weights import IntWeight
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.noise.functions import Noise
from qn_deploy.noise.integer import HistogramGrid, MinMaxGrid, StoredGrid
from qn_deploy.noise.product import Clusters, ExactNoise, MeanNoise, ZeroNoise
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Rule, Table, conv_net, transformer

torch.set_num_threads(1)

TABLES = Recipe((Rule(Table(4, 2)),))
INT8 = Recipe((Rule(Int8()),))


class Net(nn.Module):
    """One of each: 3x3, 1x1 and depthwise convolutions, a classifier without bias, an embedding that is tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(10, 8)
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.token.weight

    def forward(self, image: Tensor, token: Tensor) -> Tensor:
        pixels = self.depth(self.point(self.norm(self.conv(image)).relu())).mean((2, 3))
        out: Tensor = self.head(pixels + self.token(token))
        return out


def a_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 7, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 3, 9])


def a_net() -> Net:
    torch.manual_seed(0)
    return Net()


def seen(module: nn.Module) -> Tensor:
    """The weight that a forward pass sees."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def original(module: nn.Module) -> nn.Parameter:
    """The clean weight behind the noise."""
    return module.get_parameter("parametrizations.weight.original")


def noises(module: nn.Module) -> list[Noise]:
    """What distorts the weight, in order."""
    attached = module.get_submodule("parametrizations.weight.0")
    assert isinstance(attached, noise.QuantNoise)
    return attached.sequence()


def gradient(module: nn.Module) -> Tensor:
    grad = original(module).grad
    assert grad is not None
    return grad


def bits(model: nn.Module) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


# attach


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


# refresh, resume


def test_refresh_makes_the_codebooks_of_the_weights_as_they_are_now() -> None:
    model = nn.Linear(16, 16)
    noise.attach(model, TABLES, p=1.0, options=noise.Options("exact"))
    first = seen(model).detach().clone()
    with torch.no_grad():
        original(model).copy_(torch.randn(16, 16, generator=torch.Generator().manual_seed(5)))
    stale = float((seen(model) - original(model)).square().mean().detach())
    noise.refresh(model)
    assert float((seen(model) - original(model)).square().mean().detach()) < stale
    assert not torch.equal(seen(model), first)


def test_tied_weights_learn_once_and_alike() -> None:
    model = a_net()
    noise.attach(model, TABLES, p=1.0, options=noise.Options("exact"))
    assert noises(model.token)[0] is noises(model.head)[0]
    assert torch.equal(model.token.weight, model.head.weight)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (TABLES, noise.Options()),
        (TABLES, noise.Options("exact", "clusters", over=Int4())),
        (INT8, noise.Options(grid="histogram")),
        (Recipe((Rule(Int4()),)), noise.Options()),
    ],
    ids=["proxy", "clusters and int4", "histogram", "int4"],
)
def test_a_checkpoint_goes_on_with_the_same_numbers(recipe: Recipe, options: noise.Options, tmp_path: Path) -> None:
    def start() -> tuple[Net, torch.optim.Optimizer]:
        model = a_net()
        noise.attach(model, recipe, p=0.3, options=options)
        return model, torch.optim.Adam(model.parameters(), lr=0.05)

    def train(model: Net, optimizer: torch.optim.Optimizer, refresh: bool) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(*a_batch()).square().sum().backward()
            optimizer.step()
        if refresh:
            noise.refresh(model)

    model, optimizer = start()
    train(model, optimizer, refresh=True)
    train(model, optimizer, refresh=False)  # the weights move away from what the noises know
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, tmp_path / "check.pt")
    train(model, optimizer, refresh=True)
    train(model, optimizer, refresh=False)

    resumed, optimizer = start()
    state = torch.load(tmp_path / "check.pt")
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    train(resumed, optimizer, refresh=True)
    train(resumed, optimizer, refresh=False)
    assert bits(resumed) == bits(model)


def test_refresh_without_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"no weight noise to refresh; call qn_deploy\.noise\.attach"):
        noise.refresh(nn.Linear(8, 4))


def test_a_weight_that_is_not_finite_is_named_and_nothing_attached() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        seen(model[1])[0, 0] = torch.nan
    with pytest.raises(CompressionError, match=r"1\.weight: .*NaN"):
        noise.attach(model, TABLES, options=noise.Options("exact"))
    assert type(model[0]) is nn.Linear


# tied weights


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


# remove


def test_remove_gives_the_same_plain_model_back() -> None:
    model = a_net()
    parameters, content, keys = list(model.parameters()), bits(model), list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    noise.attach(model, conv_net(), p=0.5)
    model(*a_batch())
    noise.remove(model)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert bits(model) == content
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    assert noise.attach(model, conv_net())  # and noise can be put on again


@pytest.mark.parametrize("make", [lambda: nn.LSTM(8, 8), lambda: nn.MultiheadAttention(8, 2), lambda: nn.Conv1d(8, 8, 2)])
def test_remove_gives_all_parameters_their_places_back(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    noise.attach(model, TABLES, p=0.5)
    noise.remove(model)
    assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_remove_takes_activation_noise_off_too() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    noise.attach(model, INT8)
    noise.attach_activations(model)
    noise.remove(model)
    assert not list(model.named_buffers()) and [type(module) for module in model] == [nn.Linear, nn.ReLU]


def test_remove_leaves_other_parametrizations_and_plain_models_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    noise.remove(model)
    assert type(model[0]) is nn.Linear
    assert parametrize.is_parametrized(model[1], "weight")


def test_remove_keeps_a_parametrization_of_the_bias() -> None:
    model = nn.Linear(8, 4)
    weight, bias = model.weight, model.bias.detach().clone()
    parametrize.register_parametrization(model, "bias", nn.Tanh())
    noise.attach(model, TABLES)
    noise.remove(model)
    assert model.weight is weight and not parametrize.is_parametrized(model, "weight")
    assert torch.equal(model.bias, bias.tanh())


# copies, state dict, export


def test_a_deep_copy_is_noised_tied_and_separate() -> None:
    model = a_net()
    noise.attach(model, TABLES, p=0.0)
    twin = copy.deepcopy(model)
    noise.set_rate(twin, 1.0)
    assert not twin.point.weight.any() and model.point.weight.all()
    noise.remove(twin)
    assert twin.token.weight is twin.head.weight
    assert twin.token.weight is not model.token.weight  # the noise of the model itself still works
    noise.set_rate(model, 1.0)
    assert not model.token.weight.any()


def test_the_state_dict_holds_the_clean_weights_and_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(8, 4, bias=False))
    clean = seen(model[0]).detach().clone()
    noise.attach(model, INT8, p=0.7)
    state = model.state_dict()
    assert list(state) == ["0.bias", "0.parametrizations.weight.original", "1.parametrizations.weight.original"]
    assert torch.equal(state["0.parametrizations.weight.original"], clean)


def test_the_state_dict_loads_into_another_noised_model() -> None:
    model, twin = a_net(), Net()
    for net in (model, twin):
        noise.attach(net, conv_net(), p=0.3)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(*a_batch()), model.eval()(*a_batch()))


@pytest.mark.parametrize("strict", [False, True])
def test_a_noised_model_exports_in_eval_mode_without_noise(strict: bool) -> None:
    model = a_net().eval()
    expected = model(*a_batch())
    noise.attach(model, conv_net(), p=1.0)
    exported = torch.export.export(model, a_batch(), strict=strict)
    assert not any("uniform" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(*a_batch()), expected)


# errors


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_refused(p: float) -> None:
    model = nn.Linear(8, 4)
    with pytest.raises(InputError, match=r"is not in 0\.\.1"):
        noise.attach(model, INT8, p=p)
    noise.attach(model, INT8)
    with pytest.raises(InputError, match=r"is not in 0\.\.1"):
        noise.set_rate(model, p)


@pytest.mark.parametrize("field", ["product", "unit", "grid"])
def test_an_unknown_option_names_those_there_are(field: str) -> None:
    with pytest.raises(InputError, match=f"{field} 'proxi' is none of "):
        noise.Options(**{field: "proxi"})


def test_attaching_twice_says_what_to_do_and_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(8, 4))
    noise.attach(model, Recipe((Rule(Int8(), name="1.*"),)))
    with pytest.raises(InputError, match=r"1\.weight already has noise; call set_rate.*remove"):
        noise.attach(model, INT8)
    assert type(model[0]) is nn.Linear


def test_another_parametrization_is_named() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    with pytest.raises(InputError, match=r"0\.weight already has a parametrization, _WeightNorm; .*remove_parametrizations"):
        noise.attach(model, INT8)


@pytest.mark.parametrize(
    ("model", "found"),
    [(nn.Linear(8, 4), "weights in Linear"), (nn.LayerNorm(8), "no weights that a recipe may speak of")],
    ids=["no rule", "no layer"],
)
def test_a_recipe_that_matches_nothing_is_refused(model: nn.Module, found: str) -> None:
    with pytest.raises(InputError, match=f"compresses nothing in .*{found}.*rule"):
        noise.attach(model, Recipe((Rule(Int8(), name="encoder.*"),)))


def test_a_weight_tied_with_another_kind_of_module_is_left_as_compression_leaves_it() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Bilinear(2, 2, 4))
    model.get_submodule("1").register_parameter("weight", model.get_submodule("0").get_parameter("weight"))
    with pytest.raises(InputError, match=r"compresses nothing.*0\.weight.*tied with 1\.weight"):
        noise.attach(model, INT8)


def test_a_layer_too_small_for_its_table_gets_int8_noise() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(64, 64))
    noise.attach(model, Recipe((Rule(Table(8, 256)),)), p=1.0)
    assert seen(model[0]).any()  # a table of 4 codes and 4 centroids of 8 would be larger than 32 bytes
    assert not seen(model[1]).any()


def test_a_lazy_layer_asks_for_a_batch_first() -> None:
    with pytest.raises(InputError, match="run one batch"):
        noise.attach(nn.Sequential(nn.LazyLinear(4)), INT8)


def test_set_rate_without_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"call qn_deploy\.noise\.attach"):
        noise.set_rate(nn.Linear(8, 4), 0.1)
