"""Recipes: which weight is compressed how.

A recipe is an ordered list of rules; the first rule that matches a weight decides. The same recipe drives the noise while training
and the compression after it, so that the network learns to live with exactly the blocks that it will later be stored in.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

from qn_deploy.errors import InputError
from qn_deploy.recipe.methods import METHODS, Float, Method


@dataclass(frozen=True)
class Site:
    """What a recipe may ask of a weight.

    Attributes:
        name: the parameter's full name, "encoder.0.attn.weight".
        classes: names of the class that its operator stands for ("Conv2d"), of the module that owns it and its base classes, and of the
            modules around that.
        operator: name of the aten operator that reads it, "conv2d"; empty while training, where modules read weights.
        kernel: kernel size of a convolution, (3, 3), or (3,) in one dimension; None for what has no kernel.
    """

    name: str
    classes: frozenset[str]
    operator: str = ""
    kernel: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rule:
    """One line of a recipe.

    Attributes:
        method: what happens to a weight that matches.
        name: glob over the parameter's full name, "encoder.*.weight".
        module: glob over the class names that a weight has, see `Site`: "Conv2d".
        kernel: kernel size that a convolution must have to match, (3, 3), or (3,) in one dimension; None matches every weight.
        operator: glob over the name of the operator that reads the weight, "conv*d"; only after training are there operators.
    """

    method: Method
    name: str = "*"
    module: str = "*"
    kernel: tuple[int, ...] | None = None
    operator: str = "*"

    def matches(self, site: Site) -> bool:
        """True if a weight falls under this rule."""
        return (
            fnmatchcase(site.name, self.name)
            and any(fnmatchcase(kind, self.module) for kind in site.classes)
            and fnmatchcase(site.operator, self.operator)
            and (self.kernel is None or self.kernel == site.kernel)
        )


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules; a weight that none matches stays float.

    Attributes:
        rules: tried in order, the first match decides.
        title: a name for reports and manifests.
        per_tensor: one scale for each weight instead of one for each of its rows, as QNNPACK's kernels ask.
    """

    rules: tuple[Rule, ...]
    title: str = "custom"
    per_tensor: bool = False

    def method_for(self, site: Site) -> Method:
        """The method of the first rule that matches a weight."""
        return next((rule.method for rule in self.rules if rule.matches(site)), Float())

    def to_json(self) -> str:
        """This recipe as JSON text, without what is as ever; `from_json` gives an equal recipe back."""
        kinds = {cls: kind for kind, cls in METHODS.items()}
        rules = [
            {
                "method": {"kind": kinds[type(rule.method)], **_chosen(rule.method)},
                **{name: value for name, value in _chosen(rule).items() if name != "method"},
            }
            for rule in self.rules
        ]
        return json.dumps({"title": self.title, "per_tensor": self.per_tensor, "rules": rules}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            InputError: the text is no recipe; the message says which part.
        """
        try:
            data = json.loads(text)
            rules = tuple(_rule(entry) for entry in data["rules"])
            return cls(rules, title=str(data["title"]), per_tensor=bool(data.get("per_tensor", False)))  # earlier files do not say
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no recipe: {error!r}; write one with Recipe.to_json()") from None


def _chosen(held: Rule | Method) -> dict[str, Any]:
    """The fields that do not have their defaults: the rules of a budget, one for each weight, are a good part of a small file."""
    return {field.name: value for field in fields(held) if (value := getattr(held, field.name)) != field.default}


def _rule(entry: dict[str, Any]) -> Rule:
    method = dict(entry["method"])
    kind = method.pop("kind")
    if kind not in METHODS:
        raise ValueError(f"method kind {kind!r} is not one of {sorted(METHODS)}")
    kernel = entry.get("kernel")
    if kernel is not None:
        kernel = tuple(int(side) for side in kernel)
    globs = {name: str(entry.get(name, "*")) for name in ("name", "module", "operator")}
    return Rule(method=METHODS[kind](**method), kernel=kernel, **globs)
