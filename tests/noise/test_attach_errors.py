"""What `attach` refuses or leaves, and says."""

from __future__ import annotations

import pytest
from torch import nn

from qn_deploy import noise
from qn_deploy.errors import InputError
from qn_deploy.recipe import Int8, Recipe, Rule, Table
from tests.noise.models import INT8, seen


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
