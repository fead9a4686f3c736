"""Mutations and forgeries of a build folder: every changed byte is found before a runtime sees the file."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qn_deploy.errors import InputError, QnDeployError
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.golden import read_vectors
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, read_listed, read_manifest, sealed
from tests.faults.trials import REFUSED, count, mutated, replace_leaf, tally

pytestmark = [pytest.mark.slow, pytest.mark.faults]
ACCEPTED = "accepted, and typed"


@pytest.fixture
def folder(build: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(build.folder, tmp_path / "build"))


def refused(work: Callable[[], object]) -> str:
    try:
        work()
    except InputError as error:
        assert "\n" not in str(error)
        return REFUSED
    return ACCEPTED


def test_mutations_of_every_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (MANIFEST, *read_manifest(folder).listed):
        data = (folder / name).read_bytes()
        found = tally([mutation(folder, name, data, seed) for seed in range(count(10_000, 300))])
        (folder / name).write_bytes(data)
        with capsys.disabled():
            print(f"\n{name}, mutated: {found.total():,} cases, {dict(found)}")
        assert set(found) == {REFUSED}


def mutation(folder: Path, name: str, data: bytes, seed: int) -> Callable[[], str]:
    """A case: what becomes of a folder in which this file is mutated."""

    def case() -> str:
        draw = random.Random(f"{name}{seed}")
        while (changed := mutated(data, draw)) == data:
            pass
        (folder / name).write_bytes(changed)
        return refused(lambda: read_manifest(folder) if name == MANIFEST else read_listed(folder, name, read_manifest(folder)))

    return case


def test_forgeries_of_the_manifest(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the hash made right: refused, or typed and bounded, and never anything else."""
    content = json.loads((folder / MANIFEST).read_text())
    del content["sha256"]

    def case(seed: int) -> str:
        changed, draw = json.loads(json.dumps(content)), random.Random(seed)
        for _ in range(draw.randint(1, 3)):
            replace_leaf(changed, draw)
        (folder / MANIFEST).write_text(sealed(changed))
        return refused(lambda: read_vectors(folder, read_manifest(folder)))

    found = tally([lambda seed=seed: case(seed) for seed in range(count(10_000, 500))])
    with capsys.disabled():
        print(f"\n{MANIFEST}, forged with its hash right: {found.total():,} cases, {dict(found)}")
    assert set(found) <= {REFUSED, ACCEPTED}


def test_forgeries_of_the_vectors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    del content["sha256"]
    data = (folder / GOLDEN).read_bytes()

    def case(seed: int) -> str:
        changed = mutated(data, random.Random(seed))
        (folder / GOLDEN).write_bytes(changed)
        digest = hashlib.sha256(changed).hexdigest()
        (folder / MANIFEST).write_text(sealed({**content, "golden_bytes": len(changed), "golden_sha256": digest}))
        return refused(lambda: read_vectors(folder, read_manifest(folder)))

    found = tally([lambda seed=seed: case(seed) for seed in range(count(10_000, 500))])
    with capsys.disabled():
        print(f"\n{GOLDEN}, forged with right hashes: {found.total():,} cases, {dict(found)}")
    assert set(found) <= {REFUSED, ACCEPTED}


@pytest.mark.parametrize(("exporter", "name"), [("onnx", "model.onnx"), ("executorch", "model.pte")])
def test_the_readers_of_forged_programs(folder: Path, capsys: pytest.CaptureFixture[str], exporter: str, name: str) -> None:
    """With right hashes a mutated program reaches our readers: they refuse it, or read it; `verify` tells what else they raise."""
    reader, data = find_exporters()[exporter], (folder / name).read_bytes()

    def case(seed: int) -> str:
        changed = mutated(data, random.Random(seed))
        try:
            reader.weight_hashes(changed)
            reader.dense(changed)
        except QnDeployError:
            return REFUSED
        except Exception as error:
            return f"told as a line of the report: {type(error).__name__}"
        return "read"

    found = tally([lambda seed=seed: case(seed) for seed in range(count(10_000, 200))])
    with capsys.disabled():
        print(f"\n{name}, forged with right hashes, through its reader: {found.total():,} cases, {dict(found)}")
    assert not [word for word in found if word.startswith(("SIG", "traceback"))]
