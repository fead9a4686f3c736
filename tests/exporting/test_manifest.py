from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qn_deploy.errors import InputError
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.exporter import WeightMemory
from qn_deploy.exporting.manifest import BesideEntry, FileEntry, Manifest, TensorEntry, WeightEntry, listed_names, read_manifest, sealed

MANIFEST = Manifest(
    config=ExportConfig("x86", only=("onnx",), options={"onnx": {"shell": True}}),
    activations="static",
    inputs=(TensorEntry("image", "float32", (None, 3, 32, 32)),),
    outputs=(TensorEntry("output", "float32", (None, 10)),),
    files={
        "model.onnx": FileEntry(
            exporter="onnx",
            runtime="onnxruntime",
            bytes=1234,
            sha256="ab" * 32,
            activations="static",
            steps=(0.125,),
            notes=("a remark",),
            companions={"model.shell.onnx": BesideEntry(99, "ab" * 32)},
            facts={"opset": "18"},
            inexact=("add",),
            dense=("stem.weight",),
            folded=("positions",),
            memory={"head.weight": WeightMemory(640, 200)},
        )
    },
    golden_bytes=2,
    golden_sha256="cd" * 32,
    weights={
        "stem.weight": WeightEntry("int8", (16, 3, 3, 3), 496, "ef" * 32),
        "head.weight": WeightEntry("table", (10, 64), 1224, "01" * 32, ("23" * 32, "45" * 32), 4, 2, 16),
    },
    theoretical_bytes=1720,
    float_bytes=4288,
    versions={"torch": "2.15.0"},
    recipe={"title": "conv_net", "rules": []},
    left={"stem.weight": "int8: a table takes more"},
)


def write(folder: Path, **changes: Any) -> None:
    """A manifest with a hash of its own that is right, and files of the stated sizes beside it."""
    data = {**json.loads(MANIFEST.to_json()), **changes}
    del data["sha256"]
    (folder / "manifest.json").write_text(sealed({key: value for key, value in data.items() if value is not ...}))
    for name, entry in MANIFEST.listed.items():
        (folder / name).write_bytes(bytes(entry.bytes))


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == MANIFEST.to_json()
    assert read_manifest(tmp_path) == MANIFEST


@given(
    st.builds(
        TensorEntry,
        st.text(),
        st.sampled_from(["float32", "int64"]),
        st.lists(st.none() | st.integers(0)).map(tuple),
    )
)
def test_any_tensor_survives_json(entry: TensorEntry) -> None:
    data = json.loads(json.dumps(entry.__dict__))
    assert TensorEntry(**{**data, "shape": tuple(data["shape"])}) == entry


def test_the_text_starts_with_what_it_is_and_is_sorted() -> None:
    data = json.loads(MANIFEST.to_json())
    assert (data["format"], data["version"]) == ("qn-deploy build", 5)
    assert list(data) == sorted(data)
    assert MANIFEST.to_json().endswith("}\n")
    assert data["inputs"] == [{"name": "image", "dtype": "float32", "shape": [None, 3, 32, 32]}]
    assert data["files"]["model.onnx"]["bytes"] == 1234


def test_a_folder_without_one_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no manifest\.json; it is not the folder of an export\. Write one: qn-deploy export"):
        read_manifest(tmp_path)
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        read_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"manifest"', "{}", '{"format": "another"}', "[" * 100_000])
def test_other_json_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"is no manifest of qn-deploy|is damaged") as caught:
        read_manifest(tmp_path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_and_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match="is damaged"):
        read_manifest(tmp_path)
    (tmp_path / "other" / "manifest.json").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot read"):
        read_manifest(tmp_path / "other")


def test_another_version_is_named(tmp_path: Path) -> None:
    write(tmp_path, version=2)
    with pytest.raises(InputError, match="has version 2, this qn-deploy reads version 5; export the model again"):
        read_manifest(tmp_path)


ENTRY = json.loads(MANIFEST.to_json())["files"]["model.onnx"]
WEIGHT = json.loads(MANIFEST.to_json())["weights"]["head.weight"]
BESIDE = {"bytes": 1, "sha256": "ab" * 32}


@pytest.mark.parametrize(
    "changes",
    [
        {"golden_sha256": ...},
        {"extra": 1},
        {"files": []},
        {"files": {}},
        {"files": {"model.onnx": {}}},
        {"config": None},
        {"inputs": None},
        {"inputs": []},
        {"weights": {"a": {"shape": 3}}},
        {"golden_sha256": "ab"},
        {"golden_bytes": -1},
        {"golden_bytes": True},
        {"theoretical_bytes": 1e300},
        {"float_bytes": 1 << 60},
        {"activations": "int4"},
        {"left": {"a": "x\0"}},
        {"left": {"a": "x" * 20_000}},
        {"recipe": [1]},
        {"inputs": [{"name": "image", "dtype": "object", "shape": []}]},
        {"inputs": [{"name": "image", "dtype": "float32", "shape": [-1]}]},
        *({"files": {name: ENTRY}} for name in ("../model.onnx", "/etc/passwd", "a/b", "..", ".", "", ".bashrc", "x\0y", "manifest.json")),
        *({"files": {"model.onnx": {**ENTRY, "parts": {name: BESIDE}}}} for name in ("../../.bashrc", "/tmp/x", "model.onnx", "..")),
        *(
            {"files": {"model.onnx": {**ENTRY, **change}}}
            for change in (
                {"activations": "int4"},
                {"steps": []},
                {"steps": [1e300]},
                {"steps": [0]},
                {"steps": [-1.0]},
                {"steps": ["1"]},
                {"bytes": 1 << 40},
                {"sha256": "AB" * 32},
                {"inexact": "add"},
                {"companions": {"golden.safetensors": BESIDE}},
                {"activations": "none"},
            )
        ),
        {"files": {"model.onnx": ENTRY, "other.onnx": {**ENTRY, "companions": {}}}},  # of one exporter
        *(
            {"weights": {"head.weight": {**WEIGHT, **change}}}
            for change in ({"kind": "int8"}, {"kind": "int2"}, {"parts": []}, {"block_size": None}, {"residual": 3}, {"shape": [1.5]})
        ),
    ],
    ids=lambda changes: str(changes)[:120],
)
def test_missing_unknown_and_wrong_entries_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=r"is damaged .*; export the model again with qn-deploy export"):
        read_manifest(tmp_path)


def test_a_manifest_has_the_hash_of_its_own_content(tmp_path: Path) -> None:
    write(tmp_path)
    whole = (tmp_path / "manifest.json").read_bytes()
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        (tmp_path / "manifest.json").write_bytes(changed)
        with pytest.raises(InputError):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(whole.replace(b" 1720", b" 1721"))
    with pytest.raises(InputError, match="its sha256 is that of another text"):
        read_manifest(tmp_path)


def test_what_it_lists_are_regular_files_of_the_stated_sizes_in_the_folder_itself(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "real").write_bytes(bytes(99))
    path = tmp_path / "model.shell.onnx"
    for make, message in (
        (lambda: path.symlink_to(tmp_path / "real"), "is no regular file"),
        (path.mkdir, "is no regular file"),
        (lambda: os.mkfifo(path), "is no regular file"),
        (lambda: path.write_bytes(bytes(98)), "it holds 98 bytes, 99 in the manifest"),
        (lambda: None, "can't be read"),
    ):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        make()
        with pytest.raises(InputError, match=message):
            read_manifest(tmp_path)
        path.touch()


def test_the_names_of_an_earlier_version_are_known_and_foreign_ones_not(tmp_path: Path) -> None:
    write(tmp_path, version=2)
    assert listed_names(tmp_path) == {"manifest.json", "golden.safetensors", "report.html", "model.onnx", "model.shell.onnx"}
    write(tmp_path, files={"../x": ENTRY, "model.onnx": ENTRY})
    assert "../x" not in listed_names(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    assert listed_names(tmp_path) == set()
