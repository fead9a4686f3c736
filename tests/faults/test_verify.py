"""Programs mutated with every hash made right, through all of `verify`: what computes another thing never passes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from qn_deploy.errors import QnDeployError
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.isolated import Run, RuntimeFailure
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, sealed
from qn_deploy.program.program import Batch
from qn_deploy.verification import ladder
from tests.faults.trials import REFUSED, SECONDS, attack, count, mutated, replace_leaf
from tests.verification.folders import Folder

pytestmark = [pytest.mark.slow, pytest.mark.faults]
FAILED, SAME = "a check failed", "passed, and computes the same"
OTHER = "passes, and computes another thing"
# What describes a build to people: no rung is held to it.
DESCRIBED = {
    "versions",
    "theoretical_bytes",
    "float_bytes",
    "recipe",
    "left",
    "notes",
    "facts",
    "config",
    "runtime",
    "bytes",
    "kind",
    "residual",
}
PROGRAMS = {"model.onnx": "onnx", "model.pte": "executorch"}


def run_forked(exporter: str, runs: tuple[Run, ...], inputs: Batch) -> tuple[Batch | RuntimeFailure, ...]:
    """In place of `run_isolated`: a fork of this process for each run, which costs milliseconds, and crashes alone all the same."""
    return tuple(_run_forked(exporter, run, inputs) for run in runs)


def _run_forked(exporter: str, run: Run, inputs: Batch) -> Batch | RuntimeFailure:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            (outputs,) = find_exporters()[exporter].run(run.data, (inputs,), run.optimized, run.parts)
            data = safetensors.torch.save({str(index): tensor.clone().contiguous() for index, tensor in enumerate(outputs)})
        except Exception as error:
            data = b"!" + type(error).__name__.encode()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(data)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    if status := os.waitpid(child, 0)[1]:
        return RuntimeFailure(f"the runtime ended with {signal.Signals(os.WTERMSIG(status)).name}")
    if data.startswith(b"!"):
        return RuntimeFailure(data.decode())
    tensors = safetensors.torch.load(data)
    return tuple(tensors[str(index)] for index in range(len(tensors)))


@pytest.fixture
def folder(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(ladder, "run_isolated", run_forked)
    found = find_exporters()
    monkeypatch.setattr(ladder, "find_exporters", lambda: found)
    return Folder(Path(shutil.copytree(build.folder, tmp_path / "build")))


def verdict(folder: Folder) -> str:
    """Refused, failed or passed."""
    try:
        return "passed" if ladder.verify(folder.path).passed else FAILED
    except QnDeployError as error:
        assert "\n" not in str(error)
        return REFUSED


def results(exporter: str, data: bytes) -> list[Any]:
    """What a program makes of inputs that are not the golden ones, as bytes."""
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 1, 8, 8, generator=draw) * scale for scale in (0.5, 1.0, 4.0)]
    found = [_run_forked(exporter, Run(data), (batch,)) for batch in batches]
    return [str(each) if isinstance(each, RuntimeFailure) else [tensor.numpy().tobytes() for tensor in each] for each in found]


@pytest.mark.parametrize("name", PROGRAMS)
def test_forged_programs(folder: Folder, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder.only(name)
    data = (folder.path / name).read_bytes()
    assert verdict(folder) == "passed"
    expected = results(PROGRAMS[name], data)

    def case(seed: int) -> str:
        changed = mutated(data, random.Random(f"{name}{seed}"))
        folder.write(name, changed)
        if (word := verdict(folder)) != "passed":
            return word
        return SAME if results(PROGRAMS[name], changed) == expected else OTHER

    cases = [lambda seed=seed: case(seed) for seed in range(count(10_000, 100))]
    attack(capsys, f"{name}, forged with right hashes, through verify", cases, (REFUSED, FAILED, SAME))


def test_forged_companions(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """The stock form has to rebuild the dense program byte for byte."""
    folder.only("model.pte")
    name = "model.stock.qnz"
    data = (folder.path / name).read_bytes()

    def case(seed: int) -> str:
        changed = mutated(data, random.Random(f"{name}{seed}"))
        folder.companion("model.pte", name, changed)
        word = verdict(folder)
        return "passed, the bytes are the same" if word == "passed" and changed == data else word

    cases = [lambda seed=seed: case(seed) for seed in range(count(10_000, 100))]
    allowed = (REFUSED, FAILED, "passed, the bytes are the same", "passed")
    attack(capsys, f"{name}, forged with right hashes, through verify", cases, allowed)


def test_forged_manifests(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """What passes says the same as before of all that a rung is held to."""
    content = json.loads((folder.path / MANIFEST).read_text())
    del content["sha256"]

    def case(seed: int) -> str:
        changed, draw = json.loads(json.dumps(content)), random.Random(seed)
        for _ in range(draw.randint(1, 3)):
            replace_leaf(changed, draw)
        (folder.path / MANIFEST).write_text(sealed(changed))
        word = verdict(folder)
        if word != "passed":
            return word
        keys = {key for path in differences(content, changed) for key in path}
        return "passed, and only describes otherwise" if keys & DESCRIBED or not keys else f"passed with other {sorted(keys)}"

    cases = [lambda seed=seed: case(seed) for seed in range(count(10_000, 100))]
    attack(
        capsys, f"{MANIFEST}, forged with its hash right, through verify", cases, (REFUSED, FAILED, "passed, and only describes otherwise")
    )


def differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of keys under which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [each for key in {*one, *other} for each in differences(one.get(key), other.get(key), (*path, str(key)))]
    return [] if type(one) is type(other) and one == other else [path]


def test_forged_vectors(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the golden vectors, whatever the runtimes are held to is found; the float outputs are the model's own word."""
    data = (folder.path / GOLDEN).read_bytes()

    def case(seed: int) -> str:
        folder.write(GOLDEN, mutated(data, random.Random(f"{GOLDEN}{seed}")))
        return verdict(folder)

    cases = [lambda seed=seed: case(seed) for seed in range(count(10_000, 100))]
    attack(capsys, f"{GOLDEN}, forged with right hashes, through verify", cases, (REFUSED, FAILED, "passed"))
