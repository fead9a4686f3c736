"""Recipes: which weight is compressed how.

A recipe is an ordered list of rules; the first rule that matches a weight decides. The same recipe drives the noise while training
and the compression after it, so that the network learns to live with exactly the blocks that it will later be stored in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from qn_deploy.errors import InputError

COMPRESSIBLE = (nn.Linear, nn.Embedding, nn.Conv2d)


@dataclass(frozen=True)
class Table:
    """Product quantization: one code for each block of `block_size` weights (paper section 3.2).

    Attributes:
        block_size: d, the weights that one code stands for.
        centroids: K, the size of a codebook, 2 to 256.

    Raises:
        InputError: sizes out of these ranges.
    """

    block_size: int
    centroids: int = 256

    def __post_init__(self) -> None:
        if self.block_size < 1 or not 2 <= self.centroids <= 256:
            raise InputError(
                f"a table of {self.centroids} centroids for blocks of {self.block_size}; expected 2 to 256 centroids, blocks of 1 or more"
            )

    def pays(self, weights: int) -> bool:
        """True if a table with all its centroids in use is smaller than one byte for each of `weights` weights."""
        blocks = weights // self.block_size
        return blocks + min(self.centroids, blocks) * self.block_size < weights


@dataclass(frozen=True)
class Int8:
    """Symmetric int8 weights, one scale per output channel (paper section 3.1)."""


@dataclass(frozen=True)
class Float:
    """The weight stays float32."""


Method = Table | Int8 | Float
_METHODS: dict[str, type[Method]] = {"table": Table, "int8": Int8, "float": Float}


@dataclass(frozen=True)
class Rule:
    """One line of a recipe.

    Attributes:
        method: what happens to a weight that matches.
        name: glob over the parameter's full name, "encoder.*.weight".
        module: glob over the class name of the module that owns it, "Conv2d".
        kernel: kernel size that a convolution must have to match; None matches every module.
    """

    method: Method
    name: str = "*"
    module: str = "*"
    kernel: tuple[int, int] | None = None

    def matches(self, name: str, module: nn.Module) -> bool:
        """True if the parameter `name`, owned by `module`, falls under this rule."""
        return (
            fnmatchcase(name, self.name)
            and fnmatchcase(_class_name(module), self.module)
            and (self.kernel is None or self.kernel == getattr(module, "kernel_size", None))
        )


@dataclass(frozen=True)
class Recipe:
    """An ordered list of rules; a weight that none matches stays float.

    Attributes:
        rules: tried in order, the first match decides.
        title: a name for reports and manifests.
    """

    rules: tuple[Rule, ...]
    title: str = "custom"

    def method_for(self, name: str, module: nn.Module) -> Method:
        """The method of the first rule that matches the parameter `name` of `module`."""
        for rule in self.rules:
            if rule.matches(name, module):
                return rule.method
        return Float()

    def to_json(self) -> str:
        """This recipe as JSON text; `from_json` gives an equal recipe back."""
        kinds = {cls: kind for kind, cls in _METHODS.items()}
        rules = [
            {
                "method": {"kind": kinds[type(rule.method)], **asdict(rule.method)},
                "name": rule.name,
                "module": rule.module,
                "kernel": rule.kernel,
            }
            for rule in self.rules
        ]
        return json.dumps({"title": self.title, "rules": rules}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            InputError: the text is no recipe; the message says which part.
        """
        try:
            data = json.loads(text)
            return cls(tuple(_rule(entry) for entry in data["rules"]), title=str(data["title"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no recipe: {error!r}; write one with Recipe.to_json()") from None


def _rule(entry: dict[str, Any]) -> Rule:
    method = dict(entry["method"])
    kind = method.pop("kind")
    if kind not in _METHODS:
        raise ValueError(f"method kind {kind!r} is not one of {sorted(_METHODS)}")
    kernel = entry["kernel"]
    if kernel is not None:
        height, width = kernel
        kernel = int(height), int(width)
    return Rule(
        method=_METHODS[kind](**method),
        name=str(entry["name"]),
        module=str(entry["module"]),
        kernel=kernel,
    )


def _class_name(module: nn.Module) -> str:
    # torch parametrize swaps the class for a generated ParametrizedX; recipes speak of the class that the user wrote.
    return type(module).__name__.removeprefix("Parametrized")


def compressible(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """All weights that a recipe may speak of: (parameter name, owning module, weight), in the model's order, a tied weight by each name."""
    for path, module in model.named_modules():
        if isinstance(module, COMPRESSIBLE):
            yield (f"{path}.weight" if path else "weight"), module, module.weight


def conv_net(centroids: int = 256) -> Recipe:
    """The paper's block sizes for convolutional networks (appendix 7.6): kxk kernels by whole kernels, 1x1 by 4, classifier by 4."""
    return Recipe(
        (
            Rule(Table(9, centroids), module="Conv2d", kernel=(3, 3)),
            Rule(Table(25, centroids), module="Conv2d", kernel=(5, 5)),
            Rule(Table(4, centroids), module="Conv2d", kernel=(1, 1)),
            Rule(Table(4, centroids), module="Linear"),
            Rule(Int8()),
        ),
        title="conv_net",
    )


def transformer(centroids: int = 256) -> Recipe:
    """The paper's block sizes for Transformers (appendix 7.6): attention by 4, everything else linear and the embedding by 8."""
    return Recipe(
        (
            Rule(Table(4, centroids), name="*attn*", module="Linear"),
            Rule(Table(4, centroids), name="*attention*", module="Linear"),
            Rule(Table(8, centroids), module="Linear"),
            Rule(Table(8, centroids), module="Embedding"),
            Rule(Int8()),
        ),
        title="transformer",
    )
