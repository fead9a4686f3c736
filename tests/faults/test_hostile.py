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
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qn_deploy.cli.supervisor import execute
from qn_deploy.errors import InputError
from qn_deploy.exporters.to_onnx.names import DECODED
from qn_deploy.exporting.folder import replacing
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, sealed
from qn_deploy.verification import ladder
from tests.faults.test_verify import run_watched
from tests.program.archives import forge
from tests.verification.folders import Folder, set_constant

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


def node_of(graph: onnx.GraphProto, operator: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == operator)


def decoded(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes that decode a table, the last first."""
    return [node for node in graph.node if node.output[0].endswith(DECODED)]


def external(location: str | None, **entries: str) -> Callable[[onnx.GraphProto], object]:
    """An initializer whose bytes are elsewhere."""

    def change(graph: onnx.GraphProto) -> None:
        tensor = next(entry for entry in graph.initializer if len(entry.raw_data) > 16)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {**({} if location is None else {"location": location}), **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def codes(value: int) -> Callable[[onnx.GraphProto], object]:
    return lambda graph: set_constant(
        graph, next(each.name for each in graph.initializer if each.name.endswith("/codes")), lambda array: array.fill(value)
    )


def long_chain(graph: onnx.GraphProto) -> None:
    """A table behind ten thousand steps."""
    last = decoded(graph)[0]
    name = last.input[0]
    for step in range(10_000):
        graph.node.insert(0, onnx.helper.make_node("Flatten", [name], [f"step{step}"], axis=1))
        name = f"step{step}"
    last.input[0] = name


GRAPHS: dict[str, Callable[[onnx.GraphProto], object]] = {
    "external data without a place": external(None),
    "external data without an offset": external("model.bin"),
    "external data of another folder": external("../outside/marker", offset="0", length="16"),
    "external data of an absolute path": external("/etc/passwd", offset="0", length="16"),
    "external data of a negative offset": external("model.onnx", offset="-1", length="16"),
    "external data of a huge length": external("model.onnx", offset="0", length=str(1 << 60)),
    "a decoding that reads itself": lambda graph: decoded(graph)[0].input.__setitem__(0, decoded(graph)[0].output[0]),
    "two decodings that read each other": lambda graph: [
        decoded(graph)[0].input.__setitem__(0, decoded(graph)[1].output[0]),
        decoded(graph)[1].input.__setitem__(0, decoded(graph)[0].output[0]),
    ],
    "a decoding without end": long_chain,
    "a decoding of an operator that decodes nothing": lambda graph: setattr(decoded(graph)[0], "op_type", "Softmax"),
    "a decoding without inputs": lambda graph: decoded(graph)[0].ClearField("input"),
    "codes without a centroid": codes(15),
    "a type that nobody has": lambda graph: setattr(node_of(graph, "Cast").attribute[0], "i", 999),
    "an initializer of a shape that is not its own": lambda graph: graph.initializer[0].dims.append(1 << 40),
    "names with a NUL byte": lambda graph: [setattr(entry, "name", entry.name + "\0") for entry in graph.initializer],
    "no nodes": lambda graph: graph.ClearField("node"),
    "no outputs": lambda graph: graph.ClearField("output"),
}


def reshaped(tensors: dict[str, Any]) -> None:
    tensors["input/0"] = tensors["input/0"].reshape(4, 64)


def as_bfloat16(tensors: dict[str, Any]) -> None:
    tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})


BUILDS: dict[str, Callable[[Folder], object]] = {
    **{what: lambda folder, change=change: folder.graph(change) for what, change in GRAPHS.items()},  # type: ignore[misc]
    "garbage for ONNX": lambda folder: folder.write("model.onnx", b"\x08\x07garbage" * 50),
    "an empty ONNX file": lambda folder: folder.write("model.onnx", b""),
    "garbage for ExecuTorch": lambda folder: folder.write("model.pte", b"\0\0\0\0ET12" + b"garbage" * 50),
    "an empty program": lambda folder: folder.write("model.pte", b""),
    "garbage in the stock form": lambda folder: folder.companion("model.pte", "model.stock.qnz", b"garbage" * 50),
    "garbage for vectors": lambda folder: folder.write(GOLDEN, b"garbage" * 50),
    "a pickle for vectors": lambda folder: folder.write(GOLDEN, pickle.dumps(Evil(folder.path.parent / "outside/marker"))),
    "vectors of another shape": lambda folder: folder.golden(reshaped),
    "vectors of bf16": lambda folder: folder.golden(as_bfloat16),
    "vectors of NaN": lambda folder: folder.golden(lambda tensors: [tensor.fill_(float("nan")) for tensor in tensors.values()]),
    "no vectors": lambda folder: folder.golden(lambda tensors: tensors.clear()),
    "a companion twice": lambda folder: folder.manifest(
        lambda data: data["files"]["model.onnx"]["companions"].update(data["files"]["model.pte"]["companions"])
    ),
    "an output whose name holds NUL": lambda folder: folder.manifest(lambda data: data["outputs"][0].update(name="a\0b")),
}


@pytest.mark.parametrize("what", BUILDS)
def test_consistent_forgeries(
    build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Every hash is right: refused in a line, or a line of the report that failed, and a second process crashes in no other way."""
    monkeypatch.setattr(ladder, "run_isolated", run_watched)
    folder = Folder(Path(shutil.copytree(build.folder, tmp_path / "build")))
    BUILDS[what](folder)
    before = sorted(tmp_path.rglob("*"))
    refused(capsys, "verify", folder.path, codes=(1, 2))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def shared(model: Any, build: Any) -> Iterator[Path]:
    """A folder that every user reads, with what root owns and nobody else may write or read."""
    with tempfile.TemporaryDirectory(prefix="qn-faults-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(model.path, folder / "model.pt")
        shutil.copy(model.path, folder / "secret.pt")
        shutil.copytree(build.folder, folder / "build")
        shutil.copytree(build.folder, folder / "locked")
        (folder / "own").mkdir()
        if os.geteuid() == 0:
            os.chown(folder / "own", NOBODY, NOBODY)
        (folder / "own/.build.qn-deploy-new").mkdir()  # of root, where nobody's export would write
        for path, mode in ((folder / "secret.pt", 0), (folder / "build/model.onnx", 0), (folder / "locked", 0o700)):
            path.chmod(mode)
        yield folder


NOBODY, REPLACE = 65534, "replace"
UNPRIVILEGED: dict[str, tuple[tuple[str, ...], str]] = {
    "a model that it may not read": (("inspect", "secret.pt"), "is not readable"),
    "a file of a build that it may not read": (("verify", "build"), "Permission denied"),
    "a build that it may not enter": (("verify", "locked"), ""),
    "a folder that it may not write": (("unpack", "build/model.stock.qnz", "--out", "new.pte"), "Permission denied"),
    "a place that is another user's": ((REPLACE, "own/build"), "of another user"),
    "a build that is another user's": ((REPLACE, "build"), "Permission denied"),
    "a device of root": (("inspect", "/dev/mem"), ""),
    "a file of root": (("inspect", "/etc/shadow"), "is not readable"),
}


def replaced(folder: Path) -> int:
    """As export ends where it can't put its build: its runtimes need more files of this Python than another user may read."""
    try:
        with replacing(folder, lambda place: set()) as write:
            write({"model.onnx": b""})
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


@pytest.mark.parametrize("what", UNPRIVILEGED)
def test_an_unprivileged_user(shared: Path, what: str) -> None:
    words, expected = UNPRIVILEGED[what]
    before = sorted(shared.rglob("*"))
    reader, writer = os.pipe()
    if not (child := os.fork()):
        sys.stderr = os.fdopen(writer, "w")
        os.chdir(shared)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        code = replaced(Path(words[1])) if words[0] == REPLACE else execute(words)
        sys.stderr.flush()
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2, told
    assert "Error: " in told and expected in told and "Traceback" not in told and "a bug of qn-deploy" not in told, told
    assert sorted(shared.rglob("*")) == before


def test_there_are_enough_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {
        "models": len(MODELS),
        "operators": len(OPERATORS),
        "special files": len(KINDS),
        "manifests": len(FORGED),
        "builds": len(BUILDS),
        "as another user": len(UNPRIVILEGED),
    }
    with capsys.disabled():
        print(f"\nhostile fixtures: {sum(kinds.values())}, {kinds}")
    assert sum(kinds.values()) >= 130
