from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qn_deploy.cli import main
from qn_deploy.errors import InputError
from qn_deploy.exporting.account import account
from qn_deploy.exporting.export import ExportConfig, export


def kinds(path: Path) -> Counter[str]:
    (parts,) = account(path).values()
    assert sum(part.bytes for part in parts) == path.stat().st_size
    assert all(part.bytes >= 0 for part in parts)
    return Counter({kind: sum(part.bytes for part in parts if part.kind == kind) for kind in {part.kind for part in parts}})


def test_every_byte_of_a_model_is_told(model: Any) -> None:
    found = kinds(model.path)
    tables = [weight for weight in model.program.weights.values() if hasattr(weight, "codes")]
    assert found["centroids"] == sum(weight.centroids.numel() for weight in tables)
    assert found["scales"] == sum(weight.scale.nbytes for weight in model.program.weights.values())
    assert sum(found[kind] for kind in ("codes", "centroids", "scales")) == sum(weight.nbytes for weight in model.program.weights.values())
    assert found["graph"] > 1000 and found["examples"] > 0


@pytest.fixture(scope="module")
def uncoded(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("uncoded") / "build"
    export(model.program, folder, ExportConfig(only=("executorch",), options={"executorch": {"coding": "none"}}))
    return folder


@pytest.mark.parametrize("name", ["model.onnx", "model.pte", "model.stock.qnz"])
def test_every_byte_of_a_program_is_told(model: Any, build: Any, uncoded: Path, name: str) -> None:
    found = kinds((build.folder if name == "model.onnx" else uncoded) / name)
    tables = model.program.weights.values()
    assert found["centroids"] == sum(weight.centroids.numel() for weight in tables)
    assert found["codes"] == sum(weight.nbytes - weight.centroids.numel() - weight.scale.nbytes for weight in tables)


@pytest.mark.parametrize("name", ["model.pte", "model.stock.qnz"])
def test_every_byte_of_a_coded_program_is_told(build: Any, uncoded: Path, name: str) -> None:
    found, plain = kinds(build.folder / name), kinds(uncoded / name)
    assert 0 < found["codes"] + found["centroids"] < plain["codes"] + plain["centroids"]
    assert sum(found.values()) < sum(plain.values())


def test_a_folder_is_told_file_by_file(build: Any) -> None:
    found = account(build.folder)
    assert {name: sum(part.bytes for part in parts) for name, parts in found.items()} == {
        path.name: path.stat().st_size for path in build.folder.iterdir()
    }
    result = CliRunner().invoke(main, ["inspect", str(build.folder), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["model.onnx"]
    shown = CliRunner().invoke(main, ["inspect", str(build.folder / "model.pte")])
    assert f"model.pte: {(build.folder / 'model.pte').stat().st_size:,} bytes" in shown.stdout


@pytest.mark.parametrize("name", ["model.onnx", "model.pte", "notes.txt"])
def test_what_is_none_of_them_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello" * 20)
    with pytest.raises(InputError, match=name):
        account(tmp_path / name)
