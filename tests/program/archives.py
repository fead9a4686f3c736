"""Programs to save, and what a file that was changed is met with."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qn_deploy.errors import InputError
from qn_deploy.program.capture import capture
from qn_deploy.program.container import pack, unpack
from qn_deploy.program.members import read_members
from qn_deploy.program.program import Batch, Golden, Program
from qn_deploy.program.store import load
from qn_deploy.recipe import conv_net
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight, codes_dtype

torch.set_num_threads(1)

Graph = dict[str, Any]
PLANTED = "QN_DEPLOY_TEST_PLANTED"  # the environment variable that planted code sets


class ConvNet(nn.Module):
    """Every kind of tensor: parameters, tied parameters, buffers of both kinds, constants of both kinds, and one that isn't used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("kept", torch.rand(8))
        self.register_buffer("rebuilt", torch.rand(8), persistent=False)
        self.ramp = torch.arange(8.0)

    def forward(self, image: Tensor, gain: Tensor) -> tuple[Tensor, ...]:
        features = self.norm(nn.functional.gelu(self.conv(image), approximate="tanh")).mean((2, 3))
        scores = self.tied(self.first(features) * gain) + self.kept + self.rebuilt + self.ramp + torch.tensor([0.5] * 8)
        return scores, features, scores * image.shape[0]


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (nn.functional.linear(self.embedding(tokens), self.embedding.weight),)


def random_table(weight: Tensor, d: int, size: int = 4, books: int = 1) -> PQWeight:
    out = weight.shape[0]
    codes = torch.randint(size, (out, weight.numel() // out // d)).to(codes_dtype(size))
    centroids = torch.randint(-127, 128, (books, size, d), dtype=torch.int8)
    return PQWeight(codes, centroids, torch.rand(out) / 100 + 0.001, tuple(weight.shape))


def make_program(model: nn.Module, weights: dict[str, CompressedWeight], inputs: Batch, shapes: Any = (), **rest: Any) -> Program:
    with torch.no_grad():
        golden = Golden(inputs, run(model.eval(), inputs))
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight.dequantize())
    return replace(capture(model, inputs, dynamic_shapes=shapes), golden=golden, weights=weights, **rest)


def conv_program() -> Program:
    torch.manual_seed(0)
    model = ConvNet().eval()
    weights: dict[str, CompressedWeight] = {
        "conv.weight": random_table(model.conv.weight, d=9),
        "first.weight": IntWeight.from_float(model.first.weight),
    }
    batch = Dim("batch", min=2, max=32)
    inputs = (torch.randn(4, 3, 6, 6), torch.rand(4, 8))
    rest = {
        "outputs": ("scores", "features", "scaled"),
        "ranges": {"conv2d": (-0.1, 3.3), "gelu": (-0.17, 1e-3), "gain": (0.0, 1.0)},
        "recipe": conv_net(16),
        "left": {"unused.weight": "no input reaches it"},
        "classes": {"conv.weight": ("Conv2d", "_ConvNd"), "first.weight": ("Linear",)},
        "provenance": ({"stage": "compress", "config": {"seed": 0, "tolerance": 0.1, "names": ["a"], "teacher": None}},),
        "notes": ("The cache is left out.",),
    }
    return make_program(model, weights, inputs, ({0: batch}, {0: batch}), **rest)


def words_program() -> Program:
    torch.manual_seed(0)
    model = Words()
    weights: dict[str, CompressedWeight] = {"embedding.weight": random_table(model.embedding.weight, d=8, size=16, books=2)}
    return make_program(model, weights, (torch.tensor([[1, 2, 39]]),))


def run(model: nn.Module, inputs: Batch) -> Batch:
    return tuple(torch.utils._pytree.tree_leaves(model(*inputs)))


def same(found: Batch, expected: Batch) -> bool:
    return len(found) == len(expected) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def refusal(path: Path, data: bytes | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def opened(data: bytes) -> tuple[Graph, dict[str, bytes]]:
    """The manifest and the other members of a model.pt."""
    manifest, members = unpack(read_members(data))
    return manifest, {name: bytes(content) for name, content in members.items()}


def forge(good: bytes, edit: Callable[[Graph, dict[str, bytes]], Any]) -> bytes:
    manifest, members = opened(good)
    del manifest["members"]
    edit(manifest, members)
    return pack(manifest, members)


def saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()
