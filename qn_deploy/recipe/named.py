"""Recipes by name and from TOML files, as the command line takes them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qn_deploy.configs import from_dict
from qn_deploy.errors import InputError
from qn_deploy.files import read_bytes
from qn_deploy.recipe.compressed import compressed_conv_net, compressed_transformer
from qn_deploy.recipe.methods import METHODS, Float, Int4, Int8
from qn_deploy.recipe.paper import conv_net, efficientnet, resnet, roberta, transformer, transformer_lm
from qn_deploy.recipe.rules import Recipe, Rule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def _everywhere(method: Int8 | Int4 | Float, title: str) -> Callable[[], Recipe]:
    return lambda: Recipe((Rule(method),), title=title)


NAMED: dict[str, Callable[[], Recipe]] = {
    "conv_net": conv_net,
    "efficientnet": efficientnet,
    "resnet": resnet,
    "transformer": transformer,
    "transformer_lm": transformer_lm,
    "roberta": roberta,
    "compressed_conv_net": compressed_conv_net,
    "compressed_transformer": compressed_transformer,
    "int8": _everywhere(Int8(), "int8"),
    "int4": _everywhere(Int4(), "int4"),
    "float": _everywhere(Float(), "float"),
}


def recipe_of(text: str) -> Recipe:
    """The recipe of a name, or of a `.toml` file.

    Raises:
        InputError: there is no such name, or the file is no recipe; the message says which rule.
    """
    if text in NAMED:
        return NAMED[text]()
    path = Path(text)
    if path.suffix == ".toml":
        return read_toml(path)
    raise InputError(f"there is no recipe {text!r}; expected auto, {', '.join(NAMED)}, or a file that ends in .toml")


def read_toml(path: Path) -> Recipe:
    """A recipe from a file: `title`, `per_tensor`, and a table `[[rules]]` for each rule, tried in order.

        [[rules]]
        method = "table"      # table, int8, int4 or float; the fields of the method stand beside it
        block_size = 9
        module = "Conv2d"     # name, module and operator are globs; kernel is a list
        kernel = [3, 3]

    Raises:
        InputError: the file can't be read, or a field is unknown or has a wrong value; the message names the rule.
    """
    try:
        data = tomllib.loads(read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no TOML: {error}") from None
    try:
        recipe = from_dict(_File, {"title": path.stem, **data})
    except InputError as error:
        raise InputError(f"{path}: {str(error).replace('_File', 'a recipe')}") from None
    return Recipe(tuple(_rule(path, index, entry) for index, entry in enumerate(recipe.rules, 1)), recipe.title, recipe.per_tensor)


@dataclass(frozen=True)
class _File:
    rules: tuple[dict[str, Any], ...]
    title: str = "custom"
    per_tensor: bool = False


def _rule(path: Path, index: int, entry: dict[str, Any]) -> Rule:
    entry = dict(entry)
    kind = entry.pop("method", None)
    if kind not in METHODS:
        raise InputError(f"{path}, rule {index}: method is {kind!r}; expected {', '.join(METHODS)}")
    conditions = {key: entry.pop(key) for key in ("name", "module", "kernel", "operator") if key in entry}
    try:
        method = from_dict(METHODS[kind], entry)
        return replace(from_dict(_Conditions, conditions).rule, method=method)
    except InputError as error:
        raise InputError(f"{path}, rule {index}: {str(error).replace('_Conditions', 'rule')}") from None


@dataclass(frozen=True)
class _Conditions:
    name: str = "*"
    module: str = "*"
    kernel: tuple[int, ...] | None = None
    operator: str = "*"

    @property
    def rule(self) -> Rule:
        return Rule(Float(), self.name, self.module, self.kernel, self.operator)
