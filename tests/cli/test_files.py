from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from qn_deploy.exporting.exporter import find_exporters
from tests.cli.runs import COMMAND, pickled, refusal, run


def test_unpack_rebuilds_the_stock_program(build: Any, tmp_path: Path) -> None:
    result = run("unpack", build.folder / "model.stock.qnz", "--out", tmp_path / "model.pte")
    assert result.exit_code == 0, result.output
    stock = (tmp_path / "model.pte").read_bytes()
    assert stock == find_exporters()["executorch"].dense((build.folder / "model.pte").read_bytes())
    assert f"model.pte: {len(stock):,} bytes from" in result.stdout
    told = json.loads(run("unpack", build.folder / "model.stock.qnz", "--out", tmp_path / "model.pte", "--json").stdout)
    size = (build.folder / "model.stock.qnz").stat().st_size
    assert told == {"out": str(tmp_path / "model.pte"), "bytes": len(stock), "container_bytes": size}
    damaged = tmp_path / "damaged.qnz"
    damaged.write_bytes((build.folder / "model.stock.qnz").read_bytes()[:-1])
    result = run("unpack", damaged, "--out", tmp_path / "model.pte")
    assert (result.exit_code, result.stderr.startswith(f"Error: {damaged}: stock form: piece ")) == (2, True)
    assert (tmp_path / "model.pte").read_bytes() == stock
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.qnz", "model.pte"]


def test_what_is_no_container_is_refused(build: Any, tmp_path: Path) -> None:
    line = refusal(run("unpack", build.folder / "model.onnx", "--out", tmp_path / "model.pte"))
    assert "model.onnx is no container of the installed exporters (executorch, onnx), or its beginning is damaged" in line
    assert not list(tmp_path.iterdir())


def test_inspect_shows_each_weight(model: Any) -> None:
    result = run("inspect", model.path)
    assert result.exit_code == 0, result.output
    for name, weight in model.program.weights.items():
        (row,) = [line for line in result.stdout.splitlines() if line.startswith("│") and name in line]
        assert "table" in row
        assert f"{weight.nbytes} B" in row


def old_pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("command", ["export", "inspect"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot read {path}: No such file or directory"),
        (lambda path: path.mkdir(), "cannot read {path}: Is a directory"),
        (lambda path: path.write_bytes(b""), "{path}: is empty"),
        (lambda path: path.write_bytes(b"hello\n" * 50), "{path}: is no program of qn-deploy"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(100)), "{path}: is damaged or cut short"),
        (pickled, "{path}: is a torch.save checkpoint"),
        (old_pickled, "{path}: is a pickle or an old torch.save file"),
    ],
    ids=["missing", "directory", "empty", "text", "damaged", "checkpoint", "old checkpoint"],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, command: str, make: Any, message: str) -> None:
    path = tmp_path / "model.pt"
    make(path)
    assert refusal(run(command, path)).startswith("Error: " + message.format(path=path))
    assert not (tmp_path / "build").exists()


@pytest.mark.slow
def test_a_refusal_is_one_line_in_a_real_process_too(tmp_path: Path) -> None:
    pickled(tmp_path / "model.pt")
    done = subprocess.run([COMMAND, "export", tmp_path / "model.pt"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {tmp_path / 'model.pt'}: is a torch.save checkpoint")
    assert done.stderr.count("\n") == 1
