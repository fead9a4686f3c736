"""What the parity suite runs: small models of every kind, on every runtime that this machine has (a lane)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qn_deploy import compress, load, save
from qn_deploy.errors import ToolchainError
from qn_deploy.exporters.to_executorch.build import build_backend
from qn_deploy.program import build
from qn_deploy.program.exporter import find_exporters
from qn_deploy.program.integer import IntegerReference
from qn_deploy.program.lower import Activations, lower
from qn_deploy.program.program import Batch, Program
from qn_deploy.program.rules import Rules
from qn_deploy.recipe import Int4, Int8, Method, Recipe, Rule, Table
from qn_deploy.verify import ladder
from qn_deploy.verify.isolated import Run
from qn_deploy.verify.ladder import Report, verify

STATIC, DYNAMIC, NONE = Activations.STATIC, Activations.DYNAMIC, Activations.NONE
RECIPE = Recipe(
    (
        Rule(Int8(), name="stem.weight"),
        Rule(Table(9, 16), module="Conv2d", kernel=(3, 3)),
        Rule(Table(4, 16), module="Conv2d"),
        Rule(Table(8, 16), module="Embedding"),
        Rule(Table(4, 16)),
    ),
    title="parity",
)


def all_as(*methods: Method) -> Recipe:
    """The first weights of a model by these methods in turn, the last for the others."""
    names = ("0.*", "2.*", "*")[-len(methods) :]
    return Recipe(tuple(Rule(method, name=name) for method, name in zip(methods, names, strict=True)), title="parity")


LOCAL = all_as(Table(2, 16, codebooks=8))
EVERY_FORM = all_as(Table(4, 2048, codebooks=1), Table(4, 16, residual=16), Int4())
LOOKED_UP = Recipe((Rule(Table(4, 16, codebooks=4, residual=16), module="Embedding"), Rule(Int4())), title="parity")


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
        x = nn.functional.max_pool2d(self.pointwise(self.depthwise(x)).relu(), 2)
        x = nn.functional.adaptive_avg_pool2d(self.grouped(x).relu(), 1)
        return self.classifier(x.flatten(1))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two residual blocks: the additions have no exact rule."""

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
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


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


@dataclass(frozen=True)
class Fixture:
    """One model of the suite: how it is made, what it reads, and how its activations are quantized."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    activations: Activations
    recipe: Recipe = RECIPE


FIXTURES = {
    "conv net, static": Fixture(ConvNet, images, STATIC),
    "residual conv net, static": Fixture(Residual, images, STATIC),
    "linear, static": Fixture(linear, features, STATIC),
    "MLP, dynamic": Fixture(mlp, features, DYNAMIC),
    "embedding, dynamic": Fixture(Words, tokens, DYNAMIC),
    "conv net, float activations": Fixture(ConvNet, images, NONE),
    "K=16 d=2 G=8, static": Fixture(mlp, features, STATIC, LOCAL),
    "K=2048, residual and int4, static": Fixture(wide_mlp, features, STATIC, EVERY_FORM),
    "K=2048, residual and int4, float activations": Fixture(wide_mlp, features, NONE, EVERY_FORM),
    "local and residual embedding, dynamic": Fixture(Words, tokens, DYNAMIC, LOOKED_UP),
    "conv1d and conv transpose 1d, static": Fixture(Sound, sounds, STATIC),
    "conv transpose 2d, float activations": Fixture(Upscaled, images, NONE),
    "multi-head attention, dynamic": Fixture(Attention, sequences, DYNAMIC),
    "LSTM, dynamic": Fixture(Recurrent, sequences, DYNAMIC),
}

# What a lane needs beside its exporter; a ToolchainError says why it can't run here.
LANES: dict[str, Callable[[], object]] = {"onnx": lambda: None, "executorch": build_backend}


@cache
def missing(lane: str) -> str | None:
    """Why a lane can't run on this machine; None if it can."""
    if lane not in find_exporters():
        return f"lane {lane}: no exporter of this name is installed"
    try:
        LANES[lane]()
    except ToolchainError as error:
        return f"lane {lane}: {error}"
    return None


@pytest.fixture(params=list(LANES))
def lane(request: pytest.FixtureRequest) -> str:
    """The name of an exporter whose runtime is here."""
    if reason := missing(request.param):
        pytest.skip(reason)
    return str(request.param)


@dataclass(frozen=True)
class Climb:
    """A fixture after the whole road: compressed, saved, loaded, exported for every lane that can run, verified."""

    program: Program
    folder: Path
    report: Report

    def reference(self, rules: Rules) -> IntegerReference:
        """The program with static activations, computed by a runtime's rules."""
        return IntegerReference(self.lowered, rules)

    @cached_property
    def lowered(self) -> ExportedProgram:
        """The program with static activations."""
        return lower(self.program, STATIC).exported


@pytest.fixture(scope="session")
def climbs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Climb]:
    """The climb of a fixture by its name, made when it is first asked for.

    The runtimes run in this process: `qn_deploy.verify.isolated` has its own tests, and a child for each program would take a minute.
    """

    @cache
    def climb(name: str) -> Climb:
        fixture = FIXTURES[name]
        folder = tmp_path_factory.mktemp("climb")
        torch.manual_seed(0)
        inputs = (fixture.inputs(8),)
        calibration = [(fixture.inputs(16),) for _ in range(2)] if fixture.activations is STATIC else []
        small = compress.compress(fixture.make().eval(), fixture.recipe, inputs)
        shapes = ({0: torch.export.Dim("batch", min=1, max=32)},)
        save(small, folder / "model.pt", example_inputs=inputs, dynamic_shapes=shapes, calibration=calibration)
        program = load(folder / "model.pt")
        build.export(program, fixture.activations, folder, "arm", tuple(lane for lane in LANES if not missing(lane)))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ladder, "run_isolated", _run_here)
            return Climb(program, folder, verify(folder))

    torch.set_num_threads(1)
    return climb


def _run_here(exporter: str, runs: tuple[Run, ...], inputs: Batch) -> tuple[Batch, ...]:
    runtime = find_exporters()[exporter]
    return tuple(runtime.run(run.data, (inputs,), optimized=run.optimized)[0] for run in runs)


@pytest.fixture(params=list(FIXTURES))
def climb(request: pytest.FixtureRequest, climbs: Callable[[str], Climb]) -> Climb:
    """The climb of every fixture in turn."""
    return climbs(request.param)
