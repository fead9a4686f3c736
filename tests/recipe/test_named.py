from __future__ import annotations

from pathlib import Path

import pytest

from qn_deploy.errors import InputError
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Rule, Table, conv_net
from qn_deploy.recipe.named import NAMED, recipe_of

TOML = """
per_tensor = true

[[rules]]
method = "int8"
name = "stem.*"
range = "least_squares"

[[rules]]
method = "table"
block_size = 9
centroids = 64
module = "Conv2d"
kernel = [3, 3]

[[rules]]
method = "float"
operator = "linear"
"""


@pytest.mark.parametrize("name", NAMED)
def test_every_name_is_a_recipe(name: str) -> None:
    assert recipe_of(name) == NAMED[name]()


def test_names_give_the_recipes_of_these_names() -> None:
    assert recipe_of("conv_net") == conv_net()
    assert [recipe_of(name).rules for name in ("int8", "int4", "float")] == [(Rule(Int8()),), (Rule(Int4()),), (Rule(Float()),)]


def test_a_file_is_read_rule_by_rule(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TOML)
    rules = (
        Rule(Int8("least_squares"), name="stem.*"),
        Rule(Table(9, 64), module="Conv2d", kernel=(3, 3)),
        Rule(Float(), operator="linear"),
    )
    assert recipe_of(str(tmp_path / "mine.toml")) == Recipe(rules, title="mine", per_tensor=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules = 3", "a recipe.rules is 3"),
        ("", "a recipe needs a value for rules"),
        ("[[rules]", "is no TOML"),
        ('[[rules]]\nname = "x"', "rule 1: method is None; expected table, int8, int4, float"),
        ('[[rules]]\nmethod = "table"', "rule 1: Table needs a value for block_size"),
        ('[[rules]]\nmethod = "int8"\n[[rules]]\nmethod = "table"\nblock_size = "x"', "rule 2: Table.block_size is 'x'; expected int"),
        ('[[rules]]\nmethod = "table"\nblock_size = 4\nsize = 3', "rule 1: Table has no size; its fields are block_size, centroids"),
        ('[[rules]]\nmethod = "table"\nblock_size = 4\nkernel = 3', "rule 1: rule.kernel is 3"),
        ("colour = 1\n[[rules]]\nmethod = 'int8'", "a recipe has no colour; its fields are rules, title, per_tensor"),
    ],
)
def test_a_file_that_is_no_recipe_names_the_rule(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=r"mine\.toml") as caught:
        recipe_of(str(tmp_path / "mine.toml"))
    assert message in str(caught.value)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"there is no recipe 'resnet50'; expected auto, conv_net, .*, or a file that ends in \.toml"):
        recipe_of("resnet50")
