"""Block sizes by the kind of structure: for networks at large, and the paper's own recipes (appendix 7.6) by the names of public models.

Where the paper leaves a size open, it is that of the reference implementations: fairseq's `examples/quant_noise` for Transformers,
kill-the-bits' `src/quantize.py` for ResNets.
"""

from __future__ import annotations

from dataclasses import replace

from qn_deploy.recipe.methods import Int8, Table
from qn_deploy.recipe.rules import Recipe, Rule


def conv_net(centroids: int = 256) -> Recipe:
    """Convolutional networks: kxk kernels by whole kernels, 1x1 by 4, classifier by 4, the rest int8."""
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


def efficientnet(centroids: int = 256) -> Recipe:
    """EfficientNet as torchvision names it: expansions, projections and squeezes by 4, depthwise 3x3 by 9 and 5x5 by 25, classifier by 4.

    The stem, which reads pixels, is int8, and so are the depthwise layers that are too narrow for a table.
    """
    return Recipe((Rule(Int8(), name="features.0.0.weight"), *conv_net(centroids).rules), title="efficientnet")


def resnet(centroids: int = 256, classifier_centroids: int = 2048) -> Recipe:
    """ResNet as torchvision names it: 3x3 by 9, 1x1 by 4, classifier by 4 with a codebook of its own size.

    The 7x7 stem, which the reference leaves float, is int8.
    """
    rules = (Rule(Int8(), name="conv1.weight"), Rule(Table(4, classifier_centroids), name="fc.weight"), *conv_net(centroids).rules)
    return Recipe(rules, title="resnet")


def transformer(centroids: int = 256) -> Recipe:
    """Transformers by any of the usual names: attention by 4, everything else linear and the embedding by 8, the rest int8."""
    return Recipe(
        (
            Rule(Table(4, centroids), module="MultiheadAttention"),
            Rule(Table(4, centroids), name="*attn*", module="Linear"),
            Rule(Table(4, centroids), name="*attention*", module="Linear"),
            Rule(Table(8, centroids), module="Linear"),
            Rule(Table(8, centroids), module="Embedding"),
            Rule(Int8()),
        ),
        title="transformer",
    )


def roberta(centroids: int = 256) -> Recipe:
    """RoBERTa as fairseq or transformers name it: FFN (fc1, fc2; intermediate, output) by 8, embeddings by 8, attention by 4."""
    return replace(transformer(centroids), title="roberta")


def transformer_lm(centroids: int = 256) -> Recipe:
    """The language model of fairseq with adaptive input: FFN by 8, embeddings by 8, attention and embedding projections by 4."""
    projection = Rule(Table(4, centroids), name="*embed_tokens*", module="Linear")
    return Recipe((projection, *transformer(centroids).rules), title="transformer_lm")
