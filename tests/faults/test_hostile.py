"""Hostile files, each with a marker planted that must never appear: a refusal in one line, by every command that reads.

The commands run in this process, as the child of the supervisor would run them; what may crash is in tests/program and test_models.py.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qn_deploy.cli.supervisor import execute
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, sealed

pytestmark = [pytest.mark.slow, pytest.mark.faults]
Change = Callable[[dict[str, Any]], Any]


class Evil:
    """What plants the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "outside" / "marker"


@pytest.fixture(autouse=True)
def _nothing_is_planted(marker: Path) -> Any:
    marker.parent.mkdir()
    yield
    assert not list(marker.parent.iterdir())


def refused(capsys: pytest.CaptureFixture[str], *words: object, codes: tuple[int, ...] = (2,)) -> str:
    """The line that the command ends with; it has taken no traceback to get there."""
    assert execute([str(word) for word in words]) in codes
    told = capsys.readouterr()
    line = told.err.strip().splitlines()[-1] if told.err.strip() else ""
    assert "Traceback" not in told.err + told.out and "a bug of qn-deploy" not in told.err
    return line


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


MODELS: dict[str, Callable[[bytes, Path], bytes]] = {
    "a pickle": lambda good, marker: pickle.dumps(Evil(marker)),
    "an old pickle": lambda good, marker: pickle.dumps(Evil(marker), 0),
    "a torch.save of code": lambda good, marker: zipped({"archive/data.pkl": pickle.dumps(Evil(marker)), "archive/version": b"3"}),
    "a pickle behind a model": lambda good, marker: good + pickle.dumps(Evil(marker)),
    "a pickle before a model": lambda good, marker: pickle.dumps(Evil(marker)) + good,
    "a pickle as a member": lambda good, marker: with_member(good, "data.pkl", pickle.dumps(Evil(marker))),
    "a pickle in place of the graph": lambda good, marker: with_member(good, "graph.json", pickle.dumps(Evil(marker))),
    "a pickle in place of the tensors": lambda good, marker: with_member(good, "weights.safetensors", pickle.dumps(Evil(marker))),
    "a member of a parent folder": lambda good, marker: with_member(good, "../../outside/marker", b"x"),
    "a member with an absolute path": lambda good, marker: with_member(good, str(marker), b"x"),
    "a member with a NUL byte": lambda good, marker: with_member(good, "a\0b", b"x"),
    "a deflated bomb": lambda good, marker: zipped({"manifest.json": bytes(1 << 26)}, zipfile.ZIP_DEFLATED),
    "a bzip2 bomb": lambda good, marker: zipped({"manifest.json": bytes(1 << 26)}, zipfile.ZIP_BZIP2),
    "an lzma bomb": lambda good, marker: zipped({"manifest.json": bytes(1 << 26)}, zipfile.ZIP_LZMA),
    "a manifest nested without end": lambda good, marker: with_member(good, "manifest.json", b"[" * 1_000_000),
    "a manifest of one number": lambda good, marker: with_member(good, "manifest.json", b"9" * 100_000),
    "a manifest of NaN": lambda good, marker: with_member(good, "manifest.json", b"NaN"),
    "a graph that is another file's": lambda good, marker: with_member(good, "graph.json", b"{}"),
    "a script": lambda good, marker: f"#!/bin/sh\nmkdir {marker}\n".encode(),
    "nothing": lambda good, marker: b"",
}


def with_member(good: bytes, name: str, data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    return zipped({**members, name: data})


@pytest.mark.parametrize("what", MODELS)
@pytest.mark.parametrize("command", ["inspect", "export"])
def test_models(model: Any, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str], what: str, command: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(MODELS[what](model.path.read_bytes(), marker))
    out = ["--out", tmp_path / "build"] if command == "export" else []
    assert refused(capsys, command, path, *out).startswith(f"Error: {path}: ")
    assert not (tmp_path / "build").exists()


def special(kind: str, path: Path) -> Path:
    """A file that is no regular one, or a giant."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(8 << 30)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.symlink_to(kind)
    return path


KINDS = ("pipe", "folder", "sparse", "loop", "dangling", "/dev/zero", "/dev/tty", "/proc/self/mem")


@pytest.mark.parametrize("kind", KINDS)
def test_special_files_in_every_command_that_reads(
    model: Any, build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path, out = special(kind, tmp_path / "special"), tmp_path / "out"
    for words in (
        ("inspect", path),
        ("export", path, "--out", out),
        ("export", model.path, "--calibrate", path, "--out", out),
        ("unpack", path, "--out", out),
        ("verify", build.folder, "--layers", path) if kind in ("folder", "pipe") else ("inspect", path),
    ):
        assert refused(capsys, *words).startswith("Error: "), words
    assert not out.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [MANIFEST, GOLDEN, "model.onnx", "model.stock.qnz"])
def test_special_files_in_a_build(build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str) -> None:
    folder = Path(shutil.copytree(build.folder, tmp_path / "build"))
    (folder / name).unlink()
    special(kind, folder / name)
    assert name in refused(capsys, "verify", folder)
    assert name in refused(capsys, "android", folder, "--app", app(tmp_path), "--name", "x")


def app(tmp_path: Path) -> Path:
    (tmp_path / "app/app/src/main").mkdir(parents=True, exist_ok=True)
    (tmp_path / "app/app/src/main/AndroidManifest.xml").write_text("")
    return tmp_path / "app"


def renamed(old: str, new: str) -> Change:
    return lambda data: data["files"].update({new: data["files"].pop(old)})


def beside(kind: str, name: str, content: bytes = b"x") -> Change:
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return lambda data: data["files"]["model.onnx"][kind].update({name: entry})


NAMES = (
    "../outside/marker",
    "/tmp/marker",
    "..",
    ".",
    "",
    "a/b",
    ".bashrc",
    "a\0b",
    "a\nb",
    "x" * 300,
    "golden.safetensors",
    "manifest.json",
)
FORGED: dict[str, Change] = {
    **{f"a program called {name[:30]!r}": renamed("model.onnx", name) for name in NAMES},
    **{f"a part called {name[:30]!r}": beside("parts", name) for name in NAMES},
    **{f"a companion called {name[:30]!r}": beside("companions", name) for name in NAMES},
    "no files": lambda data: data.update(files={}),
    "an entry removed": lambda data: data["files"].pop("model.pte"),
    "steps of 1e300": lambda data: data["files"]["model.onnx"].update(steps=[1e300]),
    "steps of 1e30": lambda data: data["files"]["model.onnx"].update(steps=[1e30]),
    "a size that is too large": lambda data: data["files"]["model.onnx"].update(bytes=1 << 62),
    "a size that is wrong": lambda data: data["files"]["model.onnx"].update(bytes=3),
    "no parts of a table": lambda data: [weight.update(parts=[]) for weight in data["weights"].values()],
    "outputs of another shape": lambda data: data["outputs"][0].update(shape=[None, 11]),
    "inputs of bf16": lambda data: data["inputs"][0].update(dtype="bfloat16"),
    "no outputs": lambda data: data.update(outputs=[]),
    "exporters of nobody": lambda data: data["files"]["model.onnx"].update(exporter="../../evil"),
    "two programs of one exporter": lambda data: data["files"]["model.pte"].update(exporter="onnx"),
    "a target of nobody": lambda data: data["config"].update(target="vax"),
    "options of nobody": lambda data: data["config"].update(options=[1]),
}


@pytest.mark.parametrize("what", FORGED)
def test_forged_manifests_with_right_hashes(build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    folder = Path(shutil.copytree(build.folder, tmp_path / "build"))
    data = json.loads((folder / MANIFEST).read_text())
    del data["sha256"]
    FORGED[what](data)
    (folder / MANIFEST).write_text(sealed(data))
    before = sorted(tmp_path.rglob("*"))
    assert refused(capsys, "verify", folder).startswith("Error: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": np.full((4, 1, 8, 8), 3e38, np.float32)},
        {"image": np.zeros((4, 1, 8, 8), ">f4")},
        {"image": np.zeros((0, 1, 8, 8), np.float32)},
        {"image": np.full((4, 1, 8, 8), np.nan, np.float32)},
        {"image": np.array([Evil(Path("/nowhere"))], dtype=object)},
        {"../image": np.zeros((4, 1, 8, 8), np.float32)},
        {"image": np.zeros((4, 1, 8, 8), np.complex64)},
    ],
    ids=["an outlier", "big-endian", "no samples", "NaN", "a pickle", "a name in a parent folder", "complex"],
)
def test_calibration_data(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    codes = (0, 2)  # an outlier and another byte order may also be taken as they are
    refused(capsys, "export", model.path, "--calibrate", tmp_path / "data.npz", "--only", "onnx", "--out", tmp_path / "build", codes=codes)


def test_unpack_never_writes_over_its_input(build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.stock.qnz"
    shutil.copy(build.folder / path.name, path)
    (tmp_path / "link").symlink_to(path)
    for out in (path, f"{path}/", tmp_path / "link"):
        assert "is the container itself" in refused(capsys, "unpack", path, "--out", out)
    assert path.read_bytes() == (build.folder / path.name).read_bytes()


def test_there_are_enough_of_them() -> None:
    assert len(MODELS) + len(KINDS) * 2 + len(FORGED) >= 60
