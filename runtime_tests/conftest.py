"""What the parity suite runs: small models of every kind, on every runtime that this machine has (a lane)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fcntl import LOCK_EX, flock
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qn_deploy import calibrate, capture, compress, load, save
from qn_deploy.demo import RECIPE as DIGITS
from qn_deploy.demo import DigitsNet
from qn_deploy.errors import ToolchainError
from qn_deploy.exporters.to_executorch.build import build_backend
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.export import export
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.isolated import Run
from qn_deploy.exporting.manifest import MANIFEST
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.lowering.rules import Rules
from qn_deploy.program.program import Batch, Program
from qn_deploy.recipe import Int4, Int8, Method, Recipe, Rule, Table
from qn_deploy.verification import ladder, layers
from qn_deploy.verification.devices.bundle import find_bundle
from qn_deploy.verification.devices.device import Device
from qn_deploy.verification.devices.find import CPU, open_device
from qn_deploy.verification.judge import Check
from qn_deploy.verification.ladder import verify
from qn_deploy.verification.report import Report
from runtime_tests.models import (
    Attention,
    Branched,
    ConvNet,
    Decoder,
    Encoded,
    Gated,
    Gru,
    Inverted,
    Product,
    Recurrent,
    Residual,
    ResNet20,
    Sound,
    Transformer,
    Unbiased,
    Upscaled,
    Words,
    digits,
    features,
    images,
    linear,
    mlp,
    sequences,
    sounds,
    tokens,
    wide_mlp,
)

STATIC, QNNPACK, DYNAMIC, NONE = Activations.STATIC, Activations.QNNPACK, Activations.DYNAMIC, Activations.NONE
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
IN_MEMORY = all_as(Table(2, 16, codebooks=4), Table(4, 200, codebooks=1), Table(4, 16, codebooks=1))
EVERY_FORM = all_as(Table(4, 2048, codebooks=1), Table(4, 16, residual=16), Int4())
PER_TENSOR = replace(RECIPE, per_tensor=True)
LOOKED_UP = Recipe((Rule(Table(4, 16, codebooks=4, residual=16), module="Embedding"), Rule(Int4())), title="parity")


@dataclass(frozen=True)
class Fixture:
    """One model of the suite: how it is made, what it reads, how its activations are quantized, and which tables stay tables in memory."""

    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    activations: Activations
    recipe: Recipe = RECIPE
    memory: str = "expanded"


FIXTURES = {
    "conv net, static": Fixture(ConvNet, images, STATIC),
    "residual conv net, static": Fixture(Residual, images, STATIC),
    "linear, static": Fixture(linear, features, STATIC),
    "MLP, dynamic": Fixture(mlp, features, DYNAMIC),
    "embedding, dynamic": Fixture(Words, tokens, DYNAMIC),
    "conv net, float activations": Fixture(ConvNet, images, NONE),
    "K=16 d=2 G=8, static": Fixture(mlp, features, STATIC, LOCAL),
    "tables in memory, static": Fixture(wide_mlp, features, STATIC, IN_MEMORY, "compressed"),
    "tables in memory, dynamic": Fixture(wide_mlp, features, DYNAMIC, IN_MEMORY, "compressed"),
    "K=2048, residual and int4, static": Fixture(wide_mlp, features, STATIC, EVERY_FORM),
    "K=2048, residual and int4, float activations": Fixture(wide_mlp, features, NONE, EVERY_FORM),
    "local and residual embedding, dynamic": Fixture(Words, tokens, DYNAMIC, LOOKED_UP),
    "conv1d and conv transpose 1d, static": Fixture(Sound, sounds, STATIC),
    "conv transpose 2d, float activations": Fixture(Upscaled, images, NONE),
    "conv transpose in groups, static": Fixture(Decoder, images, STATIC),
    "conv transpose in groups, float activations": Fixture(Decoder, images, NONE),
    "multi-head attention, dynamic": Fixture(Attention, sequences, DYNAMIC),
    "LSTM, dynamic": Fixture(Recurrent, sequences, DYNAMIC),
    "ResNet-20, static": Fixture(ResNet20, images, STATIC),
    "ResNet-20, QNNPACK": Fixture(ResNet20, images, QNNPACK, PER_TENSOR),
    "demo's network, static": Fixture(DigitsNet, digits, STATIC, DIGITS),
    "inverted residual with ReLU6, static": Fixture(Inverted, images, STATIC),
    "concatenated branches, static": Fixture(Branched, images, STATIC),
    "multiplied branches, static": Fixture(Product, images, STATIC),
    "gates and curves, static": Fixture(Gated, images, STATIC),
    "Transformer, dynamic": Fixture(Transformer, tokens, DYNAMIC),
    "Transformer, float activations": Fixture(Transformer, tokens, NONE),
    "encoder layer, static": Fixture(Encoded, sequences, STATIC),
    "GRU, dynamic": Fixture(Gru, sequences, DYNAMIC),
    "linear without bias, static": Fixture(Unbiased, features, STATIC),
    "linear without bias, dynamic": Fixture(Unbiased, features, DYNAMIC),
    "int8 without tables, static": Fixture(ConvNet, images, STATIC, all_as(Int8())),
    "int4, dynamic": Fixture(mlp, features, DYNAMIC, all_as(Int4())),
}
QUICK = ("linear, static", "demo's network, static")

# What a lane needs beside its exporter; a ToolchainError says why it can't run here.
LANES: dict[str, Callable[[], object]] = {"onnx": lambda: None, "executorch": build_backend}


DEVICES = ("qemu:cortex-a53", "qemu:cortex-a72", "qemu:cortex-a76")  # where none is asked for


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        action="append",
        help="run the device suites there: cpu (not at all), qemu:CPU, adb[:SERIAL], ssh:HOST; may be repeated",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `device` runs on each of them."""
    if "device" in metafunc.fixturenames:
        names = metafunc.config.getoption("--device") or DEVICES
        metafunc.parametrize("device", [name for name in names if name != CPU], indirect=True, scope="session")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> Device:
    """A device that is there, with the bundle made."""
    try:
        find_bundle()
        return open_device(request.param)
    except ToolchainError as error:
        pytest.skip(f"device {request.param}: {error}")


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
    activations: Activations
    folder: Path
    report: Report

    def reference(self, rules: Rules) -> IntegerReference:
        """The program with static activations, computed by a runtime's rules."""
        return IntegerReference(self.lowered, rules)

    def layers(self, lane: str, device: Device | None = None) -> Check:
        """Where a runtime leaves its reference, layer by layer: what to look at when something else fails."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "run_isolated", _run_here)
            return layers.check_program("layers", lane, find_exporters()[lane], self.program, self.activations, device)[0]

    @cached_property
    def lowered(self) -> ExportedProgram:
        """The program with static activations."""
        return lower(self.program, Form(self.activations)).exported


@pytest.fixture(scope="session")
def climbs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Climb]:
    """The climb of a fixture by its name, made when it is first asked for.

    The runtimes run in this process: `qn_deploy.exporting.isolated` has its own tests, and a child for each program would take a minute.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # one folder for all workers

    @cache
    def climb(name: str) -> Climb:
        folder = shared / "climbs" / re.sub(r"\W+", "-", name)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            flock(lock, LOCK_EX)  # another worker may be making it
            if not (folder / MANIFEST).exists():
                _export(FIXTURES[name], folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ladder, "run_isolated", _run_here)
            return Climb(load(folder / "model.pt"), FIXTURES[name].activations, folder, verify(folder))

    torch.set_num_threads(1)
    return climb


def _export(fixture: Fixture, folder: Path) -> None:
    torch.manual_seed(0)
    inputs = (fixture.inputs(8),)
    batches = [(fixture.inputs(16),) for _ in range(2)] if fixture.activations.is_static else []
    shapes = ({0: torch.export.Dim("batch", min=1, max=32)},)
    small = compress(capture(fixture.make().eval(), inputs, dynamic_shapes=shapes), fixture.recipe)
    save(calibrate(small, batches) if batches else small, folder / "model.pt")
    lanes = tuple(lane for lane in LANES if not missing(lane))
    options = {lane: {"memory": fixture.memory} for lane in lanes}
    export(load(folder / "model.pt"), folder, ExportConfig(activations=fixture.activations.value, only=lanes, options=options))


def _run_here(exporter: str, runs: tuple[Run, ...], inputs: Batch) -> tuple[Batch, ...]:
    runtime = find_exporters()[exporter]
    return tuple(runtime.run(run.data, (inputs,), optimized=run.optimized)[0] for run in runs)


def lanes_of(names: Iterable[str]) -> list[Any]:
    """Names of fixtures as parameters of a test; `make test` climbs with a few, `make test-slow` with the others."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


@pytest.fixture(params=lanes_of(FIXTURES))
def climb(request: pytest.FixtureRequest, climbs: Callable[[str], Climb]) -> Climb:
    """The climb of every fixture in turn."""
    return climbs(request.param)
