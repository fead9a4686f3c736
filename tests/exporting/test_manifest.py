from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qn_deploy.errors import InputError
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.manifest import BesideEntry, FileEntry, Manifest, TensorEntry, WeightEntry, read_manifest

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
        )
    },
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
    data = {**json.loads(MANIFEST.to_json()), **changes}
    (folder / "manifest.json").write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(MANIFEST.to_json())
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
    assert (data["format"], data["version"]) == ("qn-deploy build", 3)
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
    with pytest.raises(InputError, match="can't be read"):
        read_manifest(tmp_path)
    (tmp_path / "other" / "manifest.json").mkdir(parents=True)
    with pytest.raises(InputError, match="can't be read"):
        read_manifest(tmp_path / "other")


def test_another_version_is_named(tmp_path: Path) -> None:
    write(tmp_path, version=2)
    with pytest.raises(InputError, match="has version 2, this qn-deploy reads version 3; export the model again"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"golden_sha256": ...},
        {"extra": 1},
        {"files": []},
        {"files": {"model.onnx": {}}},
        {"files": {"model.onnx": {**json.loads(MANIFEST.to_json())["files"]["model.onnx"], "activations": "int4"}}},
        {"files": {"model.onnx": {**json.loads(MANIFEST.to_json())["files"]["model.onnx"], "steps": []}}},
        {"files": {"../model.onnx": json.loads(MANIFEST.to_json())["files"]["model.onnx"]}},
        {"config": None},
        {"inputs": None},
        {"weights": {"a": {"shape": 3}}},
    ],
    ids=lambda changes: str(changes),
)
def test_missing_unknown_and_wrong_entries_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    write(tmp_path, **changes)
    with pytest.raises(InputError, match=r"is damaged .*; export the model again with qn-deploy export"):
        read_manifest(tmp_path)
