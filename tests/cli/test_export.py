from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from qn_deploy.exporting.manifest import MANIFEST, read_manifest
from tests.cli.runs import refusal, run, stages


def test_export_writes_a_build_and_tells_its_stages(model: Any, build: Any) -> None:
    assert build.export.code == 0, build.export.err
    assert sorted(path.name for path in build.folder.iterdir()) == [
        "golden.safetensors",
        "manifest.json",
        "model.onnx",
        "model.pte",
        "model.stock.qnz",
        "report.html",
    ]
    assert stages(build.export.err) == [
        f"reading {model.path}",
        *[f"writing {name}" for name in ("model.pte", "model.onnx")],
        "running the simulated program",
        "running each file once",
        f"saving to {build.folder}",
        "drawing report.html",
    ]
    for entry in read_manifest(build.folder).files.values():
        assert entry.runtime in build.export.out
    assert build.export.out.splitlines()[-1] == f"next: qn-deploy verify {build.folder}"


def test_export_tells_what_to_set_and_the_same_model_gives_the_same_bytes(model: Any, build: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    result = run("export", model.path, "--target", "x86", "--only", "onnx", "--out", folder)
    assert result.exit_code == 0, result.output
    assert "session.x64quantprecision 1, on x86 processors without VNNI" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1] == f"next: qn-deploy verify '{folder}'"
    assert sorted(path.name for path in folder.iterdir()) == ["golden.safetensors", "manifest.json", "model.onnx", "report.html"]
    assert (folder / "model.onnx").read_bytes() == (build.folder / "model.onnx").read_bytes()


@pytest.mark.slow
def test_options_of_export_reach_the_exporters(model: Any, tmp_path: Path) -> None:
    result = run("export", model.path, "--only", "onnx", "--out", tmp_path, "--shell", "--centroid-range", "64", "--allow-unfused")
    assert result.exit_code == 0, result.output
    assert {"model.shell.onnx", "model.shell.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert "model.shell.onnx" in result.stdout  # in the table of files, which a narrow terminal folds
    assert "VNNI" not in result.stdout
    verified = run("verify", tmp_path, "--json")
    checks = {check["what"]: check["found"] for check in json.loads(verified.stdout)["checks"]}
    assert checks["model.shell.onnx, model.shell.safetensors to the dense program"] == "byte-identical"
    assert verified.exit_code == 0


@pytest.mark.slow
def test_the_graph_form_is_exported_and_verified(model: Any, tmp_path: Path) -> None:
    result = run("export", model.path, "--only", "executorch", "--out", tmp_path, "--executorch-form", "graph")
    assert result.exit_code == 0, result.output
    assert read_manifest(tmp_path).files["model.pte"].facts == {"form": "graph"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden.safetensors", "manifest.json", "model.pte", "report.html"]
    verified = run("verify", tmp_path, "--json")
    assert verified.exit_code == 0, verified.output


def test_a_model_with_convolutions_and_no_calibration_is_told_what_to_do(model: Any, tmp_path: Path) -> None:
    for extra in ([], ["--activations", "dynamic"]):
        line = refusal(run("export", model.uncalibrated, "--out", tmp_path / "build", *extra))
        assert "the model has 2 convolutions" in line
        assert "--calibrate data.npz" in line
        assert "--activations none" in line
    line = refusal(run("export", model.uncalibrated, "--out", tmp_path / "build", "--activations", "static"))
    assert "static int8 activations need calibration data" in line
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("way", ["none", "calibrate"])
def test_and_that_works(model: Any, tmp_path: Path, way: str) -> None:
    np.savez(tmp_path / "data.npz", image=np.random.default_rng(0).standard_normal((5, 1, 8, 8), np.float32))
    options = ["--activations", "none"] if way == "none" else ["--calibrate", tmp_path / "data.npz"]
    result = run("export", model.uncalibrated, "--out", tmp_path / "build", "--only", "onnx", *options)
    assert result.exit_code == 0, result.output
    assert read_manifest(tmp_path / "build").activations == ("none" if way == "none" else "static")
    session = onnxruntime.InferenceSession(tmp_path / "build/model.onnx")
    (logits,) = session.run(None, {"image": np.zeros((3, 1, 8, 8), np.float32)})
    assert logits.shape == (3, 10)


def test_an_exporter_that_is_not_installed_is_named(model: Any, tmp_path: Path) -> None:
    line = refusal(run("export", model.path, "--only", "onnx", "--only", "nonsense", "--out", tmp_path / "build"))
    assert line == "Error: no exporter named nonsense is installed; there are executorch, onnx"
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("out", ["file", "taken"])
def test_a_folder_that_cannot_be_written_is_named(model: Any, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken/model.onnx").mkdir(parents=True)
    result = run("export", model.path, "--only", "onnx", "--out", tmp_path / out)
    assert result.exit_code == 2
    assert result.stdout == ""
    *before, last = result.stderr.splitlines()
    stages("\n".join(before))
    assert last.startswith("Error: ")
    assert str(tmp_path / out) in last
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "taken" / MANIFEST).exists()


def test_the_demo_names_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    result = run("demo", "--out", tmp_path / "file/demo")
    assert refusal(result) == f"Error: {tmp_path / 'file/demo'} can't be made: Not a directory; choose another folder with --out"
