"""`qn-deploy import`: from a published checkpoint to a model.pt, as one types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from qn_deploy.cli import main
from qn_deploy.compression import PQWeight
from qn_deploy.program.store import load

CODES = torch.arange(8)


@pytest.fixture(scope="module")
def inputs(place: Path) -> Path:
    """The folder of command lines, with a checkpoint that fits the network there, and data."""
    held = {"layer.centroids": torch.randn(16, 2).half(), "layer.assignments": CODES.byte(), "layer.bias": torch.ones(4)}
    torch.save(held, place / "good.pth")
    np.savez(place / "rows.npz", x=np.ones((8, 4), np.float32))
    return place


def imported(inputs: Path, monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> Result:
    monkeypatch.chdir(inputs)
    line = ["import", "wrong_net:build", "--weights", "good.pth", "--example", "x=float32[1,4]", "--out", str(out), *words]
    result = CliRunner().invoke(main, line, prog_name="qn-deploy")
    assert result.exit_code == 0, result.output
    return result


def test_the_result_is_told_with_what_to_type_next(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = imported(inputs, monkeypatch, tmp_path / "net.pt").stdout
    words = " ".join(said.split())
    assert "recipe as published" in words and "table d=2 K=16" in words and "to the float model on the examples" in words
    assert "rounding their centroids to int8 leaves each weight an SQNR of at least" in words
    assert said.endswith(
        f"next: qn-deploy inspect {tmp_path / 'net.pt'}\n      qn-deploy export {tmp_path / 'net.pt'} --target arm --out build\n"
    )
    weight = load(tmp_path / "net.pt").weights["layer.weight"]
    assert isinstance(weight, PQWeight)
    assert weight.codes.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_data_gives_ranges_and_json_the_result(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = imported(inputs, monkeypatch, tmp_path / "net.pt", "--calibrate", "rows.npz", "--json")
    told = json.loads(result.stdout)
    assert told["weights"]["layer.weight"]["form"] == "table d=2 K=16" and told["left"] == {} and len(told["notes"]) == 1
    assert told["sqnr_db"]["output"] > 20
    program = load(tmp_path / "net.pt")
    assert program.ranges and [stage["stage"] for stage in program.provenance] == ["import", "calibrate"]
