"""Hostile builds whose hashes are all right: forged manifests, graphs, programs and vectors."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from qn_deploy.exporters.to_onnx.names import DECODED
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, sealed
from qn_deploy.verification import ladder
from tests.faults.hostile.planted import Evil, refused
from tests.faults.test_verify import run_watched
from tests.verification.folders import Folder, set_constant

pytestmark = [pytest.mark.slow, pytest.mark.faults]


Change = Callable[[dict[str, Any]], Any]


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
