"""Right builds of small networks, to put faults into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy import ExportConfig, calibrate, capture, compress, export
from qn_deploy.recipe import Recipe, Rule, Table

F = nn.functional


RECIPE = Recipe((Rule(Table(9, 4), module="Conv2d"), Rule(Table(8, 16), module="Embedding"), Rule(Table(4, 4))), title="planted")


STATIC, DYNAMIC, NONE = "static", "dynamic", "none"


def make(
    folder: Path,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    activations: Any = STATIC,
    recipe: Recipe = RECIPE,
    only: tuple[str, ...] = ("onnx",),
    shapes: Any = None,
) -> Path:
    """A build of a module, calibrated with its example inputs."""
    program = compress(capture(module.eval(), inputs, dynamic_shapes=shapes), recipe)
    if activations == STATIC:
        program = calibrate(program, [inputs])
    export(program, folder, ExportConfig(activations=activations, only=only))
    return folder


class Detector(nn.Module):
    """Two float outputs of one form, one of integers, one of truth values, all by exact operators: image [N, 3, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.boxes, self.scores = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.body(self.stem(image).relu()).relu()
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        boxes, scores = self.boxes(x), self.scores(x)
        return {"boxes": boxes, "scores": scores, "best": scores.argmax(1), "seen": scores > 0}


class Words(nn.Module):
    """Tokens int64 [N, T] to hidden states [N, T, 32]: no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(100, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        hidden: Tensor = self.norm(x + self.down(F.gelu(self.up(x))))
        return hidden


def image(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 12, 12)
