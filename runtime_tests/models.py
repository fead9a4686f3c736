"""The models of the parity suites: small ones, with every kind of layer and operator that programs are made of."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Convolutions of every kind and a classifier; all operators have an exact integer rule."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 32, 1)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=2)
        self.classifier = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.norm(self.stem(image)).relu()
        x = F.max_pool2d(self.pointwise(self.depthwise(x)).relu(), 2)
        x = F.adaptive_avg_pool2d(self.grouped(x).relu(), 1)
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.classifier = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        x = (x + self.norm(self.first(x))).relu()
        x = (x + self.second(x)).relu()
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class Words(nn.Module):
    """The mean of embedded tokens, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.classifier = nn.Linear(32, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.embedding(tokens).mean(1).relu())  # type: ignore[no-any-return]


class Sound(nn.Module):
    """Convolutions in one dimension, a BatchNorm, and a transposed one back up."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv1d(8, 32, 4, stride=2), nn.BatchNorm1d(32)
        self.mix = nn.Conv1d(32, 32, 1)
        self.up = nn.ConvTranspose1d(32, 16, 4, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.mix(self.norm(self.down(x)).relu()).relu())  # type: ignore[no-any-return]


class Upscaled(nn.Module):
    """A transposed convolution of images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 16, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.up(self.first(image).relu())  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Transposed convolutions of every kind: depthwise, grouped, dilated, in one dimension, and one by the weight of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 16, 3, stride=2, padding=1, groups=16)
        self.grouped = nn.ConvTranspose2d(16, 32, 3, dilation=2, output_padding=1, stride=2, groups=4)
        self.line = nn.ConvTranspose1d(32, 16, 4, stride=2, dilation=3, groups=2)
        self.shared = nn.Conv2d(16, 16, 3, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        x = self.depthwise(self.first(image).relu()).relu()
        x = F.conv_transpose2d(self.shared(x).relu(), self.shared.weight)
        return self.line(self.grouped(x).relu()[:, :, 0])  # type: ignore[no-any-return]


class Attention(nn.Module):
    """nn.MultiheadAttention, whose three projections are one packed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(32, 2, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """An LSTM and a classifier of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(32, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])  # type: ignore[no-any-return]


def linear() -> nn.Module:
    return nn.Linear(64, 32)


def wide_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 32), nn.ReLU(), nn.Linear(32, 10))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 12, 12)


def features(count: int) -> Tensor:
    return torch.randn(count, 64)


def tokens(count: int) -> Tensor:
    return torch.randint(100, (count, 12))


def sounds(count: int) -> Tensor:
    return torch.randn(count, 8, 16)


def sequences(count: int) -> Tensor:
    return torch.randn(count, 4, 32)


class ResNet20(nn.Module):
    """He et al.'s network for CIFAR-10, random weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairwise(widths)))
        self.classifier = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.norm(self.stem(image)).relu())
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A residual block of ResNet20; where the width doubles, a 1x1 convolution is the short way."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.one, self.norm_one = nn.Conv2d(a, b, 3, stride=b // a, padding=1, bias=False), nn.BatchNorm2d(b)
        self.two, self.norm_two = nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b)
        self.short = nn.Identity() if a == b else nn.Conv2d(a, b, 1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_two(self.two(self.norm_one(self.one(x)).relu()))
        return (self.short(x) + y).relu()  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Two encoder layers over learned positions, and logits of each token from the embedding's own table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(100, 32), nn.Parameter(torch.randn(12, 32) / 4)
        self.layers = nn.Sequential(*(Layer() for _ in range(2)))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.layers(self.embedding(tokens) + self.positions)
        return F.linear(x, self.embedding.weight)


class Layer(nn.Module):
    """Attention over two heads and a feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.wide, self.narrow = nn.Linear(32, 128), nn.Linear(128, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (2, 16)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(-1, -2) / 4, -1)
        x = self.first(x + self.out((weights @ value).transpose(1, 2).flatten(2)))
        return self.second(x + self.narrow(F.gelu(self.wide(x))))  # type: ignore[no-any-return]


class Encoded(nn.Module):
    """A layer of the Transformer over vectors, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = Layer(), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))  # type: ignore[no-any-return]


class Inverted(nn.Module):
    """MobileNetV2's block: wide, depthwise 5x5, narrow, with ReLU6 and a short way around."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.wide, self.norm = nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64)
        self.depthwise = nn.Conv2d(64, 64, 5, padding=2, groups=64)
        self.narrow, self.classifier = nn.Conv2d(64, 16, 1), nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        y = F.relu6(self.depthwise(F.relu6(self.norm(self.wide(x)))))
        return self.classifier(F.adaptive_avg_pool2d(x + self.narrow(y), 1).flatten(1))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Squeeze and excite: a convolution's channels scaled by a sigmoid of their means, and activations that are curves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.classifier = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.hardswish(self.body(F.silu(self.stem(image))))
        gate = torch.sigmoid(self.excite(self.squeeze(F.adaptive_avg_pool2d(x, 1)).relu()))
        return self.classifier(F.adaptive_avg_pool2d(x * gate, 1).flatten(1))  # type: ignore[no-any-return]


class Branched(nn.Module):
    """Two branches, one dilated, joined channel by channel; pooled, padded, and multiplied with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.near, self.far = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.joined, self.classifier = nn.Conv2d(32, 16, 1), nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(image).relu(), 2)
        near, far = self.near(x).relu(), self.far(x).relu()
        x = self.joined(F.pad(torch.cat([near, far], 1), (1, 1, 1, 1))).relu()
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class Product(nn.Module):
    """Two convolutions multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.classifier = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.one(image).relu() * self.two(image)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


class Gru(nn.Module):
    """A GRU and a classifier of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(32, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])  # type: ignore[no-any-return]


class Unbiased(nn.Module):
    """Linear layers without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 64, bias=False), nn.Linear(64, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).relu())  # type: ignore[no-any-return]


def digits(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8)
