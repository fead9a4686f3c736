from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from qn_deploy.errors import InputError
from qn_deploy.recipe import Float, Int8, Method, Recipe, Rule, Table, compressible, conv_net, transformer

METHODS = st.one_of(st.builds(Table, st.integers(1, 64), st.integers(2, 256)), st.just(Int8()), st.just(Float()))
KERNELS = st.none() | st.tuples(st.integers(1, 9), st.integers(1, 9))
RECIPES = st.builds(Recipe, st.lists(st.builds(Rule, METHODS, st.text(), st.text(), KERNELS)).map(tuple), st.text())


@given(RECIPES)
def test_json_round_trip(recipe: Recipe) -> None:
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_the_json_in_full() -> None:
    recipe = Recipe((Rule(Table(9, 16), module="Conv2d", kernel=(3, 3)), Rule(Int8(), name="head.*"), Rule(Float())), title="mine")
    assert json.loads(recipe.to_json()) == {
        "title": "mine",
        "rules": [
            {"method": {"kind": "table", "block_size": 9, "centroids": 16}, "name": "*", "module": "Conv2d", "kernel": [3, 3]},
            {"method": {"kind": "int8"}, "name": "head.*", "module": "*", "kernel": None},
            {"method": {"kind": "float"}, "name": "*", "module": "*", "kernel": None},
        ],
    }


RULE = {"method": {"kind": "int8"}, "name": "*", "module": "*", "kernel": None}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "JSONDecodeError"),
        ("[]", "list indices"),
        ('{"title": "x"}', "'rules'"),
        (json.dumps({"title": "x", "rules": [{**RULE, "method": {"kind": "int4"}}]}), "'int4' is not one of .*float.*int8.*table"),
        (json.dumps({"title": "x", "rules": [{**RULE, "method": {"kind": "int8", "bits": 4}}]}), "bits"),
        (json.dumps({"title": "x", "rules": [{**RULE, "kernel": [3]}]}), "not enough values"),
        (json.dumps({"title": "x", "rules": [{**RULE, "kernel": "ab"}]}), "invalid literal"),
        (json.dumps({"title": "x", "rules": ["int8"]}), "TypeError"),
    ],
    ids=["empty", "list", "no rules", "unknown method", "unknown option", "short kernel", "bad kernel", "no rule"],
)
def test_what_is_no_recipe_is_refused_in_one_line(text: str, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        Recipe.from_json(text)
    assert "\n" not in str(caught.value)
    assert "Recipe.to_json()" in str(caught.value)


@pytest.mark.parametrize(("block", "size"), [(0, 256), (-1, 4), (4, 1), (4, 257)])
def test_sizes_out_of_range_are_refused(block: int, size: int) -> None:
    with pytest.raises(
        InputError, match=f"a table of {size} centroids for blocks of {block}; expected 2 to 256 centroids, blocks of 1 or more"
    ):
        Table(block, size)


def test_the_first_rule_that_matches_decides() -> None:
    linear = nn.Linear(4, 4)
    recipe = Recipe((Rule(Int8(), name="encoder.*"), Rule(Table(4), module="Linear"), Rule(Int8())))
    assert recipe.method_for("encoder.0.weight", linear) == Int8()
    assert recipe.method_for("decoder.0.weight", linear) == Table(4)
    assert recipe.method_for("decoder.0.weight", nn.Embedding(4, 4)) == Int8()
    assert Recipe(()).method_for("weight", linear) == Float()


def test_names_are_case_sensitive_and_whole() -> None:
    linear = nn.Linear(4, 4)
    assert not Rule(Int8(), module="linear").matches("weight", linear)
    assert not Rule(Int8(), name="weight").matches("head.weight", linear)
    assert not Rule(Int8(), kernel=(1, 1)).matches("weight", linear)


def test_a_parametrized_module_goes_by_the_class_that_the_user_wrote() -> None:
    linear = nn.Linear(4, 4)
    parametrize.register_parametrization(linear, "weight", nn.Identity())
    assert type(linear).__name__ == "ParametrizedLinear"
    assert Rule(Int8(), module="Linear").matches("weight", linear)


def conv(kernel: Any) -> nn.Module:
    return nn.Conv2d(8, 8, kernel)


@pytest.mark.parametrize(
    ("recipe", "name", "module", "expected"),
    [
        (conv_net(), "a.weight", conv(3), Table(9)),
        (conv_net(), "a.weight", conv(5), Table(25)),
        (conv_net(), "a.weight", conv(1), Table(4)),
        (conv_net(), "a.weight", conv(7), Int8()),
        (conv_net(16), "a.weight", nn.Linear(8, 8), Table(4, 16)),
        (conv_net(), "a.weight", nn.Embedding(8, 8), Int8()),
        (transformer(), "layers.0.self_attn.out_proj.weight", nn.Linear(8, 8), Table(4)),
        (transformer(), "layer.0.attention.self.query.weight", nn.Linear(8, 8), Table(4)),
        (transformer(64), "layers.0.fc1.weight", nn.Linear(8, 8), Table(8, 64)),
        (transformer(), "embed.weight", nn.Embedding(8, 8), Table(8)),
        (transformer(), "stem.weight", conv(3), Int8()),
    ],
)
def test_the_papers_block_sizes(recipe: Recipe, name: str, module: nn.Module, expected: Method) -> None:
    assert recipe.method_for(name, module) == expected


def test_compressible_weights_come_in_the_models_order_and_tied_ones_by_each_name() -> None:
    model = nn.Sequential(nn.Embedding(4, 8), nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 4), nn.Conv1d(1, 1, 1))
    model[3].weight = model[0].weight
    found = [(name, module, weight) for name, module, weight in compressible(model)]
    assert [name for name, _, _ in found] == ["0.weight", "2.0.weight", "3.weight"]
    assert found[0][2] is found[2][2]
    assert [name for name, _, _ in compressible(nn.Linear(2, 2))] == ["weight"]
