"""The paper's own recipes: block sizes by the kind of structure (appendix 7.6)."""

from __future__ import annotations

from qn_deploy.recipe.methods import Int8, Table
from qn_deploy.recipe.rules import Recipe, Rule


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
