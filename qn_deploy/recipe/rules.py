"""Recipes: which weight is compressed how.

A recipe is an ordered list of rules; the first rule that matches a weight decides. The same recipe drives the noise while training
and the compression after it, so that the network learns to live with exactly the blocks that it will later be stored in.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from qn_deploy.errors import InputError
from qn_deploy.recipe.methods import METHODS, Float, Method


@dataclass(frozen=True)
class Rule:
    """One line of a recipe.

    Attributes:
        method: what happens to a weight that matches.
        name: glob over the parameter's full name, "encoder.*.weight".
        module: glob over the class name of the module that owns it, "Conv2d", or over that of one of its base classes.
        kernel: kernel size that a convolution must have to match, (3, 3), or (3,) in one dimension; None matches every module.
    """

    method: Method
    name: str = "*"
    module: str = "*"
    kernel: tuple[int, ...] | None = None

    def matches(self, name: str, module: nn.Module) -> bool:
        """True if the parameter `name`, owned by `module`, falls under this rule."""
        return (
            fnmatchcase(name, self.name)
            and any(fnmatchcase(kind.__name__, self.module) for kind in type(module).__mro__)
            and (self.kernel is None or self.kernel == getattr(module, "kernel_size", None))
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

    def method_for(self, name: str, module: nn.Module) -> Method:
        """The method of the first rule that matches the parameter `name` of `module`."""
        for rule in self.rules:
            if rule.matches(name, module):
                return rule.method
        return Float()

    def to_json(self) -> str:
        """This recipe as JSON text; `from_json` gives an equal recipe back."""
        kinds = {cls: kind for kind, cls in METHODS.items()}
        rules = [
            {
                "method": {"kind": kinds[type(rule.method)], **asdict(rule.method)},
                "name": rule.name,
                "module": rule.module,
                "kernel": rule.kernel,
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


def _rule(entry: dict[str, Any]) -> Rule:
    method = dict(entry["method"])
    kind = method.pop("kind")
    if kind not in METHODS:
        raise ValueError(f"method kind {kind!r} is not one of {sorted(METHODS)}")
    kernel = entry["kernel"]
    if kernel is not None:
        kernel = tuple(int(side) for side in kernel)
    return Rule(
        method=METHODS[kind](**method),
        name=str(entry["name"]),
        module=str(entry["module"]),
        kernel=kernel,
    )
