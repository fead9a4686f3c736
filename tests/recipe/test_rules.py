from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from qn_deploy.errors import InputError
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Rule, Site, Table
from qn_deploy.recipe.parameters import Slot

RANGES = st.sampled_from([None, "minmax", "least_squares"])
METHODS = st.one_of(
    st.builds(Table, st.integers(1, 64), st.integers(2, 65_536), st.none() | st.integers(1, 9), st.just(0) | st.integers(2, 300)),
    st.builds(Int8, RANGES),
    st.builds(Int4, RANGES),
    st.just(Float()),
)
KERNELS = st.none() | st.lists(st.integers(1, 9), min_size=1, max_size=2).map(tuple)
RECIPES = st.builds(Recipe, st.lists(st.builds(Rule, METHODS, st.text(), st.text(), KERNELS, st.text())).map(tuple), st.text())


@given(RECIPES)
def test_json_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_the_json_in_full() -> None:
    recipe = Recipe((Rule(Table(9, 16), module="Conv2d", kernel=(3, 3)), Rule(Int8(), name="head.*"), Rule(Float())), title="mine")
    assert json.loads(recipe.to_json()) == {
        "title": "mine",
        "per_tensor": False,
        "rules": [
            {"method": {"kind": "table", "block_size": 9, "centroids": 16}, "module": "Conv2d", "kernel": [3, 3]},
            {"method": {"kind": "int8"}, "name": "head.*"},
            {"method": {"kind": "float"}},
        ],
    }


def test_json_that_says_everything_is_read_too() -> None:
    table = {"kind": "table", "block_size": 9, "centroids": 16, "codebooks": None, "residual": 0}
    rules = [
        {"method": table, "name": "*", "module": "Conv2d", "kernel": [3, 3], "operator": "conv*"},
        {"method": {"kind": "int8", "range": None}, "name": "head.*", "module": "*", "kernel": None},
    ]
    expected = (Rule(Table(9, 16), module="Conv2d", kernel=(3, 3), operator="conv*"), Rule(Int8(), name="head.*"))
    assert Recipe.from_json(json.dumps({"title": "mine", "rules": rules})) == Recipe(expected, title="mine")


RULE = {"method": {"kind": "int8"}, "name": "*", "module": "*", "kernel": None}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "JSONDecodeError"),
        ("[]", "list indices"),
        ('{"title": "x"}', "'rules'"),
        (json.dumps({"title": "x", "rules": [{**RULE, "method": {"kind": "int3"}}]}), "'int3' is not one of .*float.*int4.*int8.*table"),
        (json.dumps({"title": "x", "rules": [{**RULE, "method": {"kind": "int8", "bits": 4}}]}), "bits"),
        (json.dumps({"title": "x", "rules": [{**RULE, "kernel": 3}]}), "not iterable"),
        (json.dumps({"title": "x", "rules": [{**RULE, "kernel": "ab"}]}), "invalid literal"),
        (json.dumps({"title": "x", "rules": ["int8"]}), "TypeError"),
    ],
    ids=["empty", "list", "no rules", "unknown method", "unknown option", "number as kernel", "bad kernel", "no rule"],
)
def test_what_is_no_recipe_is_refused_in_one_line(text: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        Recipe.from_json(text)
    assert "\n" not in str(caught.value)
    assert "Recipe.to_json()" in str(caught.value)


def site(name: str, module: nn.Module) -> Site:
    return Slot(name, module, name.rpartition(".")[2]).site


def test_the_first_rule_that_matches_decides() -> None:
    linear = nn.Linear(4, 4)
    recipe = Recipe((Rule(Int8(), name="encoder.*"), Rule(Table(4), module="Linear"), Rule(Int8())))
    assert recipe.method_for(site("encoder.0.weight", linear)) == Int8()
    assert recipe.method_for(site("decoder.0.weight", linear)) == Table(4)
    assert recipe.method_for(site("decoder.0.weight", nn.Embedding(4, 4))) == Int8()
    assert Recipe(()).method_for(site("weight", linear)) == Float()


def test_names_are_case_sensitive_and_whole() -> None:
    linear = nn.Linear(4, 4)
    assert not Rule(Int8(), module="linear").matches(site("weight", linear))
    assert not Rule(Int8(), name="weight").matches(site("head.weight", linear))
    assert not Rule(Int8(), kernel=(1, 1)).matches(site("weight", linear))


def test_a_rule_for_a_class_holds_for_its_subclasses() -> None:
    attention = nn.MultiheadAttention(4, 1)
    assert type(attention.out_proj) is not nn.Linear
    assert Rule(Int8(), module="Linear").matches(site("out_proj.weight", attention.out_proj))


def test_a_parametrized_module_goes_by_the_class_that_the_user_wrote() -> None:
    linear = nn.Linear(4, 4)
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    assert type(linear).__name__ == "ParametrizedLinear"
    assert Rule(Int8(), module="Linear").matches(site("weight", linear))
