from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qn_deploy.compression import IntWeight, PQWeight, compress
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.recipe import Float, Int8, Recipe, Rule, Table

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe((Rule(Float(), name="last.*"), Rule(Table(9, 8), module="Conv2d", kernel=(3, 3)), Rule(Table(4, 16), module="Linear")))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.body = nn.Linear(24, 8)
        self.small = nn.Linear(8, 5)
        self.odd = nn.Linear(5, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        out: Tensor = self.last(self.odd(self.small(torch.relu(self.body(x)))))
        return out


class Language(nn.Module):
    """Embedding and output layer share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.out = nn.Linear(16, 64)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(self.embed(tokens))
        return out


def a_net() -> Net:
    torch.manual_seed(0)
    return Net()


def test_the_recipe_decides_and_what_is_left_says_why() -> None:
    result = compress(a_net(), RECIPE, (IMAGES,))
    kinds = {name: type(weight) for name, weight in result.weights.items()}
    assert kinds == {"conv.weight": PQWeight, "body.weight": PQWeight, "small.weight": IntWeight, "odd.weight": IntWeight}
    assert result.left == {
        "small.weight": "int8: a table takes 65 bytes, int8 60",
        "odd.weight": "int8: blocks of 4 weights do not divide a row of 5",
    }
    assert result.recipe is RECIPE


def test_the_users_model_is_not_changed() -> None:
    model = a_net().train()
    before = copy.deepcopy(model.state_dict())
    result = compress(model, RECIPE, (IMAGES,))
    assert model.training and type(model.conv) is nn.Conv2d and isinstance(model.norm, nn.BatchNorm2d)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not result.model.training and not result.reference.training
    assert torch.equal(result.reference(IMAGES), copy.deepcopy(model).eval()(IMAGES))


def test_batchnorm_ends_in_the_scale_and_leaves_the_codes_alone() -> None:
    model = a_net().eval()
    plain = compress(model, RECIPE, (IMAGES,)).weights["conv.weight"]
    nn.init.uniform_(model.norm.weight, 0.5, 2.0)
    folded = compress(model, RECIPE, (IMAGES,)).weights["conv.weight"]
    factor = model.norm.weight.detach()
    assert torch.equal(plain.int8(), folded.int8())
    torch.testing.assert_close(folded.scale, plain.scale * factor)


def test_baked_is_a_plain_model_of_the_same_numbers() -> None:
    result = compress(a_net(), RECIPE, (IMAGES,))
    baked = result.baked()
    assert not any(parametrize.is_parametrized(module) for module in baked.modules())
    assert torch.equal(baked(IMAGES), result.model(IMAGES))
    assert list(result.weights)  # baking a copy leaves the result whole


def test_same_seed_same_weights() -> None:
    first, second = (compress(a_net(), RECIPE, (IMAGES,), seed=3).weights["body.weight"] for _ in range(2))
    assert torch.equal(first.int8(), second.int8()) and torch.equal(first.scale, second.scale)


def test_a_tied_weight_has_one_table_and_two_names() -> None:
    torch.manual_seed(0)
    tokens = torch.arange(10)
    result = compress(Language(), Recipe((Rule(Table(4, 16)),)), (tokens,))
    weights = result.weights
    assert list(weights) == ["embed.weight", "out.weight"]
    assert weights["embed.weight"] is weights["out.weight"]
    assert weights["embed.weight"].scale.shape == (1,)  # four bytes a row would cost as much as the codes
    assert torch.equal(result.baked()(tokens), result.model(tokens))


def test_a_weight_tied_with_a_module_that_can_hold_no_table_stays_float() -> None:
    model = a_net()
    model.register_module("copy", nn.ParameterList([model.body.weight]))
    result = compress(model, Recipe((Rule(Int8()),)), (IMAGES,))
    assert "body.weight" not in result.weights
    assert result.left == {"body.weight": "float: tied with copy.0, which is no weight of a module that can be compressed"}


def test_a_calibration_batch_that_is_no_tuple_is_refused() -> None:
    with pytest.raises(InputError, match=r"a batch is a Tensor; give tuples of input tensors"):
        compress(a_net(), RECIPE, (IMAGES,), calibration=[IMAGES])  # type: ignore[list-item]


def test_noise_must_be_removed_first() -> None:
    model = a_net()
    parametrize.register_parametrization(model.body, "weight", nn.Identity())
    with pytest.raises(CompressionError, match=r"body\.weight still carries a parametrization.*qn_deploy\.noise\.remove"):
        compress(model, RECIPE, (IMAGES,))


def test_what_is_compressed_is_not_compressed_again() -> None:
    result = compress(a_net(), RECIPE, (IMAGES,))
    with pytest.raises(CompressionError, match=r"conv\.weight still carries a parametrization"):
        compress(result.model, RECIPE, (IMAGES,))


@pytest.mark.parametrize("method", [Table(4, 16), Int8()])
def test_nan_names_the_layer(method: Table | Int8) -> None:
    model = a_net()
    with torch.no_grad():
        model.body.weight[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"body\.weight: the weight holds NaN or infinity"):
        compress(model, Recipe((Rule(method, module="Linear"),)), (IMAGES,))


def test_half_precision_names_the_layer_and_the_way_out() -> None:
    with pytest.raises(CompressionError, match=r"weight: a Linear weight of torch.bfloat16 .* call model\.float\(\)"):
        compress(nn.Linear(8, 8).bfloat16(), Recipe((Rule(Int8()),)), (torch.ones(1, 8, dtype=torch.bfloat16),))


def test_calibration_inputs_halve_what_is_lost() -> None:
    model = a_net().eval()
    inputs = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + torch.linspace(-2, 2, 8)
    seen, unseen = inputs[:64], inputs[64:]
    plain = compress(model, RECIPE, (IMAGES,))
    found = compress(model, RECIPE, (IMAGES,), calibration=[(batch,) for batch in seen.split(32)])

    def lost(result: nn.Module) -> float:
        with torch.no_grad():
            return float((result(unseen) - model(unseen)).square().mean())

    assert {name: type(weight) for name, weight in found.weights.items()} == {name: type(weight) for name, weight in plain.weights.items()}
    assert sum(weight.nbytes for weight in found.weights.values()) <= sum(weight.nbytes for weight in plain.weights.values())
    assert found.left == plain.left
    assert lost(found.model) < 0.5 * lost(plain.model)


def test_weights_that_no_input_reached_are_told() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
            self.last = nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.attention(x, x, x, need_weights=False)[0])
            return out

    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    result = compress(Attends(), Recipe((Rule(Table(4, 4)),)), (x,), calibration=[(x,)])
    unseen = ["attention.in_proj_weight", "attention.out_proj.weight"]  # torch hands them on, and calls no module
    assert list(result.weights) == [*unseen, "last.weight"]
    assert result.left == dict.fromkeys(unseen, "no calibration input reached it: compressed without error feedback")


def test_a_tied_weight_is_calibrated_for_both_readers() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(64, (4, 9))
    result = compress(Language(), Recipe((Rule(Table(4, 16)),)), (tokens,), calibration=[(tokens,)])
    assert result.left == {} and set(result.weights) == {"embed.weight", "out.weight"}
    assert torch.equal(result.model.embed.weight, result.model.out.weight)


def test_progress_names_each_weight() -> None:
    seen: list[tuple[tuple[str, ...], float]] = []
    compress(a_net(), RECIPE, (IMAGES,), calibration=[(IMAGES,)], progress=lambda at: seen.append((at.names, at.share)))
    assert seen == [
        ((f"{name}.weight",), share) for name, share in zip(("conv", "body", "small", "odd"), (0.25, 0.5, 0.75, 1.0), strict=True)
    ]
