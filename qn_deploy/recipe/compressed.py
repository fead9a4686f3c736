"""Recipes for programs whose tables stay tables in memory: 16 centroids, which a vector register holds, and as many local codebooks as pay.

`qn-deploy export --memory auto` keeps these tables as they are. A block of 2 weights takes 2 bits a weight, a block of 4 takes 1.
"""

from __future__ import annotations

from qn_deploy.recipe.methods import Int8, Table
from qn_deploy.recipe.rules import Recipe, Rule

SMALL = 16


def compressed_transformer(block_size: int = 2) -> Recipe:
    """Transformers: linear layers by `block_size`, embeddings by 8 over 256 centroids, which are looked up by row anyway, the rest int8."""
    rules = (Rule(Table(block_size, SMALL), module="Linear"), Rule(Table(8), module="Embedding"), Rule(Int8()))
    return Recipe(rules, title="compressed_transformer")


def compressed_conv_net(block_size: int = 2) -> Recipe:
    """Convolutional networks: 1x1 kernels and linear layers by `block_size`, larger kernels, which are expanded, as in `conv_net`."""
    return Recipe(
        (
            Rule(Table(9), module="Conv2d", kernel=(3, 3)),
            Rule(Table(25), module="Conv2d", kernel=(5, 5)),
            Rule(Table(block_size, SMALL), module="Conv2d", kernel=(1, 1)),
            Rule(Table(block_size, SMALL), module="Linear"),
            Rule(Int8()),
        ),
        title="compressed_conv_net",
    )
