from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from qn_deploy.recipe import Int8, Method, Recipe, Table, conv_net, efficientnet, resnet, roberta, transformer, transformer_lm
from qn_deploy.recipe.parameters import Slot


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
        (transformer(), "encoder.in_proj_weight", nn.MultiheadAttention(8, 2), Table(4)),
        (transformer(), "stem.weight", conv(3), Int8()),
        (efficientnet(), "features.0.0.weight", conv(3), Int8()),
        (efficientnet(), "features.2.0.block.0.0.weight", conv(1), Table(4)),
        (efficientnet(), "features.2.0.block.1.0.weight", conv(3), Table(9)),
        (efficientnet(), "features.3.0.block.1.0.weight", conv(5), Table(25)),
        (efficientnet(), "features.3.0.block.2.fc1.weight", conv(1), Table(4)),
        (efficientnet(), "classifier.1.weight", nn.Linear(8, 8), Table(4)),
        (resnet(), "conv1.weight", conv(7), Int8()),
        (resnet(), "layer1.0.conv1.weight", conv(1), Table(4)),
        (resnet(), "layer1.0.conv2.weight", conv(3), Table(9)),
        (resnet(), "fc.weight", nn.Linear(8, 8), Table(4, 2048)),
        (roberta(), "encoder.sentence_encoder.layers.0.self_attn.q_proj.weight", nn.Linear(8, 8), Table(4)),
        (roberta(), "roberta.encoder.layer.0.attention.output.dense.weight", nn.Linear(8, 8), Table(4)),
        (roberta(), "roberta.encoder.layer.0.intermediate.dense.weight", nn.Linear(8, 8), Table(8)),
        (roberta(), "roberta.encoder.layer.0.output.dense.weight", nn.Linear(8, 8), Table(8)),
        (roberta(), "roberta.embeddings.word_embeddings.weight", nn.Embedding(8, 8), Table(8)),
        (transformer_lm(), "decoder.layers.0.fc1.weight", nn.Linear(8, 8), Table(8)),
        (transformer_lm(), "decoder.layers.0.self_attn.k_proj.weight", nn.Linear(8, 8), Table(4)),
        (transformer_lm(), "decoder.embed_tokens.embeddings.1.0.weight", nn.Embedding(8, 8), Table(8)),
        (transformer_lm(), "decoder.embed_tokens.embeddings.1.1.weight", nn.Linear(8, 8), Table(4)),
    ],
)
def test_the_papers_block_sizes(recipe: Recipe, name: str, module: nn.Module, expected: Method) -> None:
    assert recipe.method_for(Slot(name, module, "weight").site) == expected
