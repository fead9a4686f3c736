from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from qn_deploy.recipe import Int8, Method, Recipe, Table, conv_net, transformer


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
