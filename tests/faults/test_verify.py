"""Programs mutated with every hash made right, through all of `verify`: what computes another thing never passes."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from qn_deploy.errors import QnDeployError
from qn_deploy.exporting.describe import describe_weights
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.golden import read_vectors
from qn_deploy.exporting.isolated import Run, RuntimeFailure
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, read_manifest, sealed
from qn_deploy.program.program import Batch
from qn_deploy.verification import claims, ladder
from tests.faults.trials import REFUSED, attack, count, mutated, replace_leaf, runtime
from tests.verification.folders import Folder

pytestmark = [pytest.mark.slow, pytest.mark.faults]
FAILED, SAME, TOLD = "a check failed", "passed, and computes the same", "passed, and only tells people something else"
WITH_MODEL, OTHER = "found with the model alone", "passes, and computes another thing"
# What tells people of a build: neither a rung nor the model is held to it.
SIMULATED = "passed with another simulation, which the reported loss alone is measured with"
TELLING = {"versions", "recipe", "notes", "facts", "config", "runtime", "bytes"}
PROGRAMS = {"model.onnx": "onnx", "model.pte": "executorch"}


def run_watched(exporter: str, runs: tuple[Run, ...], inputs: Batch) -> tuple[Batch | RuntimeFailure, ...]:
    """In place of `run_isolated`: in this process, which is a child itself; what crashes here is told as a failure there."""
    results: list[Batch | RuntimeFailure] = []
    for run in runs:
        with runtime():
            try:
                results += find_exporters()[exporter].run(run.data, (inputs,), run.optimized, run.parts)
            except Exception as error:
                results.append(RuntimeFailure(type(error).__name__))
    return tuple(results)


@pytest.fixture
def folder(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(ladder, "run_isolated", run_watched)
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


@pytest.fixture
def with_model(model: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Folder], bool]:
    """True if `verify --layers` finds it before it judges any layer."""
    write = cache(lambda exporter, options, target, scheme: write_file(find_exporters()[exporter], model.program, scheme, options, target))
    names = {exporter.filename: name for name, exporter in find_exporters().items()}
    monkeypatch.setattr(
        claims, "write_file", lambda exporter, _, scheme, options, target: write(names[exporter.filename], options, target, scheme)
    )

    def found(folder: Folder) -> bool:
        manifest = read_manifest(folder.path)
        if describe_weights(model.program) != manifest.weights:
            return True
        try:
            checks = claims.check_claims(manifest, read_vectors(folder.path, manifest), model.program, find_exporters())
        except QnDeployError:
            return True
        return False in [check.passed for check in checks]

    return found


def results(exporter: str, data: bytes) -> list[Any]:
    """What a program makes of inputs that are not the golden ones, as bytes."""
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 1, 8, 8, generator=draw) * scale for scale in (0.5, 1.0, 4.0)]
    found = [run_watched(exporter, (Run(data),), (batch,))[0] for batch in batches]
    return [str(each) if isinstance(each, RuntimeFailure) else [tensor.numpy().tobytes() for tensor in each] for each in found]


@pytest.mark.parametrize("name", PROGRAMS)
def test_forged_programs(folder: Folder, with_model: Callable[[Folder], bool], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder.only(name)
    data = (folder.path / name).read_bytes()
    assert verdict(folder) == "passed" and not with_model(folder)
    expected = results(PROGRAMS[name], data)

    def case(seed: int) -> str:
        changed = mutated(data, random.Random(f"{name}{seed}"))
        folder.write(name, changed)
        if (word := verdict(folder)) != "passed":
            return word
        if results(PROGRAMS[name], changed) == expected:
            return SAME
        return WITH_MODEL if with_model(folder) else OTHER

    cases = [lambda seed=seed: case(seed) for seed in range(count(10_000, 100))]
    attack(capsys, f"{name}, forged with right hashes, through verify", cases, (REFUSED, FAILED, SAME, WITH_MODEL))


def test_forged_companions(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    """The stock form has to rebuild the dense program byte for byte."""
    folder.only("model.pte")
    name = "model.stock.qnz"
    data = (folder.path / name).read_bytes()
    rebuild = lambda container: find_exporters()["executorch"].rebuild({name: container})  # noqa: E731
    dense = rebuild(data)

    def case(seed: int) -> str:
        changed = mutated(data, random.Random(f"{name}{seed}"))
        folder.companion("model.pte", name, changed)
        word = verdict(folder)
        return SAME if word == "passed" and rebuild(changed) == dense else word

    cases = [lambda seed=seed: case(seed) for seed in range(count(10_000, 100))]
    attack(capsys, f"{name}, forged with right hashes, through verify", cases, (REFUSED, FAILED, SAME))


def test_forged_manifests(folder: Folder, with_model: Callable[[Folder], bool], capsys: pytest.CaptureFixture[str]) -> None:
    """What passes says the same as before of all that decides something."""
    content = json.loads((folder.path / MANIFEST).read_text())
    del content["sha256"]
    assert verdict(folder) == "passed" and not with_model(folder)

    def case(seed: int) -> str:
        changed, draw = json.loads(json.dumps(content)), random.Random(seed)
        for _ in range(draw.randint(1, 3)):
            replace_leaf(changed, draw)
        (folder.path / MANIFEST).write_text(sealed(changed))
        if (word := verdict(folder)) != "passed":
            return word
        if with_model(folder):
            return WITH_MODEL
        others = differences(content, changed)
        return TOLD if all(TELLING & set(path) for path in others) else f"passes, with other {others}"

    cases = [lambda seed=seed: case(seed) for seed in range(count(10_000, 100))]
    attack(capsys, f"{MANIFEST}, forged with its hash right, through verify", cases, (REFUSED, FAILED, WITH_MODEL, TOLD))


def differences(one: Any, other: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of keys under which two JSON values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [each for key in {*one, *other} for each in differences(one.get(key), other.get(key), (*path, str(key)))]
    return [] if type(one) is type(other) and one == other else [path]


def test_forged_vectors(folder: Folder, with_model: Callable[[Folder], bool], capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever the runtimes are held to is found, and with the model the float outputs, too."""
    data = (folder.path / GOLDEN).read_bytes()
    before = safetensors.torch.load(data)
    assert verdict(folder) == "passed" and not with_model(folder)

    def case(seed: int) -> str:
        changed = mutated(data, random.Random(f"{GOLDEN}{seed}"))
        folder.write(GOLDEN, changed)
        if (word := verdict(folder)) != "passed":
            return word
        if with_model(folder):
            return WITH_MODEL
        after = safetensors.torch.load(changed)
        others = [key for key, tensor in before.items() if key not in after or not torch.equal(after[key], tensor)]
        return SIMULATED if others and all(key.startswith("simulated/") for key in others) else OTHER if others else SAME

    cases = [lambda seed=seed: case(seed) for seed in range(count(10_000, 100))]
    attack(capsys, f"{GOLDEN}, forged with right hashes, through verify", cases, (REFUSED, FAILED, SAME, WITH_MODEL, SIMULATED))
