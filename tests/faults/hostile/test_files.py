"""Hostile models and data, each with a marker planted: a refusal in one line, by every command that reads."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.faults.hostile.planted import Evil, refused
from tests.program.archives import forge

pytestmark = [pytest.mark.slow, pytest.mark.faults]


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


# Every member of the model in it is whole, as its hashes say, and what stands around them is never looked at.
AROUND = ("a pickle behind a model", "a pickle before a model")


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
    if what in AROUND:
        refused(capsys, "inspect", path, codes=(0, 2))
        return
    assert refused(capsys, command, path, *out).startswith(f"Error: {path}: ")
    assert not (tmp_path / "build").exists()


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


# Each is one that torch has: a file that is made, code that is run, a kernel that believes its indices.
OPERATORS = (
    "torch.ops.aten.from_file.default",
    "torch.ops.aten.max_pool2d_with_indices_backward.default",
    "torch.ops.aten.adaptive_max_pool2d_backward.default",
    "torch.ops.aten.segment_reduce.default",
    "torch.ops.aten.set_.source_Storage",
    "torch.ops.aten.as_strided_.default",
    "torch.ops.aten.resize_.default",
    "torch.ops.aten.put_.default",
    "torch.ops.aten._unsafe_index_put.default",
    "torch.ops.prim.Print.default",
    "torch.ops.profiler._record_function_enter.default",
    "torch.ops.qn_deploy::evil",
    "torch.load",
    "torch.hub.load",
    "torch._C._load_library",
    "os.system",
    "builtins.exec",
    "_operator.methodcaller",
)


@pytest.mark.parametrize("target", OPERATORS)
@pytest.mark.parametrize("command", ["inspect", "export"])
def test_operators(model: Any, tmp_path: Path, marker: Path, capsys: pytest.CaptureFixture[str], target: str, command: str) -> None:
    def edit(_: dict[str, Any], members: dict[str, bytes]) -> None:
        graph = json.loads(members["graph.json"])
        node = graph["graph_module"]["graph"]["nodes"][0]
        arguments = ({"as_string": str(marker)}, {"as_bool": True}, {"as_int": 1 << 20})
        node.update(target=target, inputs=[{"name": name, "arg": arg, "kind": 1} for name, arg in zip("abc", arguments, strict=True)])
        members["graph.json"] = json.dumps(graph).encode()

    path = tmp_path / "model.pt"
    path.write_bytes(forge(model.path.read_bytes(), edit))
    out = ["--out", tmp_path / "build"] if command == "export" else []
    assert "is refused; expected a forward operator" in refused(capsys, command, path, *out)
    assert not (tmp_path / "build").exists()
