"""Right builds that look strange: every one passes, written for onnxruntime; in both formats where there is more time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qn_deploy import ExportConfig, calibrate, capture, compress, export, verify
from qn_deploy.recipe import Float, Int4, Int8, Recipe, Rule, Table
from qn_deploy.verification.report import Report

RECIPE = Recipe((Rule(Table(9, 4), module="Conv2d"), Rule(Table(8, 16), module="Embedding"), Rule(Table(4, 4))), title="right")
STATIC, DYNAMIC, NONE = "static", "dynamic", "none"
SIDE = 16

pytestmark = pytest.mark.slow


class Net(nn.Module):
    """Two linear layers, and what a test makes of the second one's result: float32 [..., 16]."""

    def __init__(self, end: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.end = nn.Linear(SIDE, SIDE), nn.Linear(SIDE, SIDE), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self.second(self.first(x).relu()))


class Anchors(nn.Module):
    """Scores, and boxes that are the same for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(SIDE, SIDE)
        self.register_buffer("anchors", torch.rand(6, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), self.anchors * 2.0


class Blind(nn.Module):
    """Attention whose last row may look at nothing: its softmax is NaN in the float model and in every runtime."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(SIDE, SIDE)
        bias = torch.ones(4, 4).tril().log()
        bias[3] = -torch.inf
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        weights = (x @ x.transpose(1, 2) + self.bias).softmax(-1)
        return weights @ self.value(x)


class Words(nn.Module):
    """Tokens int64 [N, T] to hidden states: an embedding, positions that are looked up by constants, a layer."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(96, SIDE), nn.Embedding(32, SIDE)
        self.layer = nn.Linear(SIDE, 96 if tied else SIDE)
        if tied:
            self.layer.weight = self.embed.weight
        self.register_buffer("places_of", torch.arange(32))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.layer(self.embed(tokens) + self.places(self.places_of[: tokens.shape[1]]))
        return hidden


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(SIDE, SIDE, batch_first=True), nn.Linear(SIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layer(x)[0][:, -1])
        return scores


class Dead(nn.Module):
    """A channel that is zero for every input, and one output far larger than the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, SIDE, 3, padding=1), nn.Linear(SIDE, SIDE)
        with torch.no_grad():
            self.conv.weight[2] = 0.0
            self.conv.bias[2] = -1.0  # type: ignore[index]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(image).relu()
        return x, 1000.0 * self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Shared(nn.Module):
    """One layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIDE, SIDE)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(self.layer(x).relu())
        return result


def random_weights() -> nn.Module:
    """A probability that hardly depends on the input."""
    net = Net(lambda x: torch.sigmoid(x[:, :1]))
    with torch.no_grad():
        net.second.weight.mul_(1e-3)
    return net


@dataclass(frozen=True)
class Right:
    """A module and how it is exported; its inputs are float32 [4, 16] if nothing else is said."""

    module: Callable[[], nn.Module]
    inputs: Callable[[], Tensor] = lambda: torch.randn(4, SIDE)
    activations: str = STATIC
    recipe: Recipe = RECIPE
    shapes: Any = None


def tokens() -> Tensor:
    return torch.randint(96, (2, 10))


LENGTH = ({0: Dim("batch", min=1, max=8), 1: Dim("length", min=2, max=32)},)
RIGHT = {
    "a constant output": Right(Anchors),
    "a repeated output": Right(lambda: Net(lambda x: (x, x))),
    "a dict whose order is not the alphabet's": Right(lambda: Net(lambda x: {"scores": x[:, 4:], "boxes": x[:, :4]})),
    "integers": Right(lambda: Net(lambda x: x.argmax(1))),
    "truth values": Right(lambda: Net(lambda x: x > 0.1)),
    "floats and integers": Right(lambda: Net(lambda x: (x, x.argmax(1)))),
    "a row that sees nothing": Right(Blind, lambda: torch.randn(2, 4, SIDE), NONE),
    "scores that are minus infinity": Right(lambda: Net(lambda x: x.masked_fill(x < 0, -torch.inf)), activations=NONE),
    "a layer left float": Right(lambda: Net(lambda x: x), recipe=Recipe((Rule(Float(), name="first.weight"), Rule(Table(4, 4))))),
    "the last layer left float": Right(lambda: Net(lambda x: x), recipe=Recipe((Rule(Float(), name="second.weight"), Rule(Table(4, 4))))),
    "tied tables": Right(lambda: Words(tied=True), tokens, DYNAMIC),
    "positions looked up by constants": Right(Words, tokens, DYNAMIC, shapes=()),
    "hidden states without classes": Right(Words, tokens, NONE),
    "no batch": Right(lambda: Net(lambda x: x), lambda: torch.randn(SIDE), shapes=()),
    "a dynamic length": Right(Words, tokens, DYNAMIC, shapes=LENGTH),
    "one value": Right(lambda: Net(lambda x: x.mean()), shapes=()),
    "a probability that hardly varies": Right(random_weights),
    "a dead channel": Right(Dead, lambda: torch.randn(2, 3, 8, 8)),
    "a layer called twice": Right(Shared),
    "four bits": Right(lambda: Net(lambda x: x), recipe=Recipe((Rule(Int4()),))),
    "int8 and no table": Right(lambda: Net(lambda x: x), recipe=Recipe((Rule(Int8()),))),
    "a recurrent layer": Right(Recurrent, lambda: torch.randn(2, 5, SIDE), DYNAMIC),
    "an image in another order of memory": Right(
        Dead, lambda: torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last), activations=NONE
    ),
}


HEAVY = {"a recurrent layer", "a dynamic length", "hidden states without classes", "tied tables", "a dead channel"}  # seconds each


def climbed(right: Right, folder: Path, only: tuple[str, ...]) -> Report:
    inputs = (right.inputs(),)
    program = compress(capture(right.module().eval(), inputs, dynamic_shapes=right.shapes), right.recipe)
    if right.activations == STATIC:
        program = calibrate(program, [inputs])
    export(program, folder, ExportConfig(activations=right.activations, only=only))  # type: ignore[arg-type]
    return verify(folder)


@pytest.mark.parametrize("name", [name for name in RIGHT if name not in HEAVY])
def test_a_right_build_passes(name: str, here: None, tmp_path: Path) -> None:
    report = climbed(RIGHT[name], tmp_path / "build", ("onnx",))
    assert report.passed, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_build_passes_in_both_formats(name: str, here: None, tmp_path: Path) -> None:
    report = climbed(RIGHT[name], tmp_path / "build", ("onnx", "executorch"))
    assert report.passed, str(report)
