"""One saved model and one build of it, made once a session by the real command line; copies are cheap to break."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qn_deploy import compress, save
from qn_deploy.compress import Compressed
from qn_deploy.recipe import Recipe, Rule, Table

COMMAND = Path(sys.executable).with_name("qn-deploy")
RECIPE = Recipe((Rule(Table(9, 4), module="Conv2d"), Rule(Table(4, 4), module="Linear")), title="small")


class Small(nn.Module):
    """Convolutions and a linear layer, all of whose operators have an exact integer rule: image [N, 1, 8, 8] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.body(self.norm(self.stem(image)).relu()).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Done:
    """What a `qn-deploy` process left."""

    code: int
    out: str
    err: str


def qn_deploy(*arguments: str | Path, timeout: float = 300) -> Done:
    """Runs the installed command as a user does."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Model:
    """A compressed model and the model.pt of it, with calibration batches and without."""

    compressed: Compressed
    inputs: tuple[Tensor, ...]
    path: Path
    uncalibrated: Path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs = (torch.randn(4, 1, 8, 8),)
    compressed = compress.compress(Small().eval(), RECIPE, inputs)
    folder = tmp_path_factory.mktemp("model")
    shapes = ({0: torch.export.Dim("batch", min=1, max=16)},)
    calibration = [(torch.randn(8, 1, 8, 8),) for _ in range(2)]
    save(compressed, folder / "model.pt", example_inputs=inputs, dynamic_shapes=shapes, calibration=calibration)
    save(compressed, folder / "uncalibrated.pt", example_inputs=inputs, dynamic_shapes=shapes)
    return Model(compressed, inputs, folder / "model.pt", folder / "uncalibrated.pt")


@dataclass(frozen=True)
class Build:
    """A build folder and how `qn-deploy export` went."""

    folder: Path
    export: Done


@pytest.fixture(scope="session")
def build(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Build:
    folder = tmp_path_factory.mktemp("export") / "build"
    return Build(folder, qn_deploy("export", model.path, "--target", "arm", "--out", folder))
