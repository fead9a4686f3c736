from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qn_deploy import android
from qn_deploy.android import APP_MANIFEST, MODELS, bundle, model_name
from qn_deploy.cli import main
from qn_deploy.errors import InputError
from qn_deploy.exporting.manifest import MANIFEST, BesideEntry, read_manifest

ALWAYS = {"golden.safetensors", "manifest.json"}


@pytest.fixture
def app(tmp_path: Path) -> Path:
    folder = tmp_path / "my app"
    (folder / APP_MANIFEST).parent.mkdir(parents=True)
    (folder / APP_MANIFEST).touch()
    return folder


def index(app: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((app / MODELS / "index.json").read_text())["models"]
    return found


def test_the_chain_of_hashes_starts_in_the_index(app: Path, build: Any) -> None:
    files = bundle(build.folder, app, "digits").files
    assert set(files) == {"model.onnx", "model.stock.qnz"} | ALWAYS
    assert index(app)["digits"]["files"] == ["model.onnx", "model.stock.qnz"]
    manifest = app / MODELS / "digits" / MANIFEST
    assert index(app)["digits"]["manifest_sha256"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    for name, size in files.items():
        assert (app / MODELS / "digits" / name).read_bytes() == (build.folder / name).read_bytes()
        assert size == (build.folder / name).stat().st_size


def test_a_model_takes_the_place_of_its_name_only(app: Path, build: Any) -> None:
    bundle(build.folder, app, "one", pte=True)
    bundle(build.folder, app, "two")
    assert "model.pte" in index(app)["one"]["files"]
    bundle(build.folder, app, "one")
    assert set(index(app)) == {"one", "two"}
    assert index(app)["one"] == index(app)["two"]
    assert sorted(path.name for path in (app / MODELS / "one").iterdir()) == sorted(path.name for path in (app / MODELS / "two").iterdir())


def test_a_pte_without_a_container_needs_no_backend(app: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(build.folder)
    files = {name: replace(entry, companions={}) for name, entry in manifest.files.items()}
    monkeypatch.setattr(android, "read_manifest", lambda _: replace(manifest, files=files))
    assert set(bundle(build.folder, app, "graph").files) == {"model.onnx", "model.pte"} | ALWAYS


@pytest.mark.parametrize("name", ["model.onnx", "model.stock.qnz", "golden.safetensors"])
def test_a_damaged_file_is_refused_and_nothing_is_written(app: Path, build: Any, tmp_path: Path, name: str) -> None:
    damaged = shutil.copytree(build.folder, tmp_path / "damaged")
    (damaged / name).write_bytes((damaged / name).read_bytes() + b"\0")
    with pytest.raises(InputError, match=f"{name} is not the file that was exported"):
        bundle(damaged, app, "digits")
    assert not (app / MODELS).exists()


def test_a_program_in_several_files_is_too_large(app: Path, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(build.folder)
    files = {**manifest.files, "model.onnx": replace(manifest.files["model.onnx"], parts={"model.0.data": BesideEntry(1, "")})}
    monkeypatch.setattr(android, "read_manifest", lambda _: replace(manifest, files=files))
    with pytest.raises(InputError, match=r"model\.onnx is kept in 2 files.* too large for an app"):
        bundle(build.folder, app, "digits")


def test_an_index_that_is_damaged_is_no_traceback(app: Path, build: Any) -> None:
    (app / MODELS).mkdir(parents=True)
    (app / MODELS / "index.json").write_text("[]")
    with pytest.raises(InputError, match=r"index\.json is damaged"):
        bundle(build.folder, app, "digits")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "é"])
def test_names_are_folders(app: Path, build: Any, name: str) -> None:
    with pytest.raises(InputError, match="can't be the name of a model"):
        bundle(build.folder, app, name)


def test_the_name_is_the_folders(tmp_path: Path) -> None:
    assert model_name(tmp_path / "digits") == "digits"
    assert model_name(tmp_path / "digits/build") == "digits"


def test_the_command(app: Path, build: Any, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["android", str(build.folder), "--app", str(app), "--name", "digits"])
    assert result.exit_code == 0, result.output
    assert "model.stock.qnz" in result.output and f"next: in '{app}': gradle wrapper" in result.output
    result = CliRunner().invoke(main, ["android", str(build.folder), "--app", str(tmp_path)])
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {tmp_path} holds no app/src/main/AndroidManifest.xml")
