"""What is not installed is left out, or is one sentence with the command that installs it. Modules are hidden in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qn_deploy.exporting.manifest import read_manifest

SCRIPT = """
import contextlib, io, json, sys
hidden, commands = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(hidden))  # None: importing it fails, and it has no spec
from qn_deploy.cli.supervisor import execute
found = []
for command in commands:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = execute(command)
    found.append([code, out.getvalue(), err.getvalue().splitlines()[-1:]])
print(json.dumps(found))
"""


def without(hidden: list[str], *commands: list[object]) -> list[tuple[int, str, str]]:
    """(exit code, standard output, last line of standard error) of each command."""
    given = json.dumps([hidden, [list(map(str, command)) for command in commands]])
    done = subprocess.run([sys.executable, "-c", SCRIPT, given], capture_output=True, text=True, check=True)
    return [(code, out, err[0] if err else "") for code, out, err in json.loads(done.stdout)]


@pytest.mark.slow
def test_who_wants_only_onnx_needs_no_executorch(model: Any, build: Any, tmp_path: Path) -> None:
    pte = build.folder / "model.pte"
    exported, named, verified, inspected, unpacked, again = without(
        ["executorch"],
        ["export", model.path, "--out", tmp_path / "build"],
        ["export", model.path, "--only", "executorch", "--out", tmp_path / "other"],
        ["verify", build.folder],
        ["inspect", pte],
        ["unpack", build.folder / "model.stock.qnz", "--out", tmp_path / "stock.pte"],
        ["verify", tmp_path / "build"],
    )
    remedy = "ExecuTorch XNNPACK needs the module executorch: pip install 'qn-deploy[executorch]'"
    assert exported[0] == 0 and f"note: there is no model.pte: {remedy}" in " ".join(exported[1].split())
    assert set(read_manifest(tmp_path / "build").files) == {"model.onnx"}
    assert (named[0], named[2]) == (2, f"Error: {remedy}")
    assert (verified[0], verified[2]) == (2, f"Error: model.pte was written by the exporter 'executorch', {remedy}")
    assert (inspected[0], inspected[2]) == (2, f"Error: {pte}: {remedy}")
    assert (unpacked[0], again[0]) == (0, 0)
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_what_is_missing_is_one_sentence(model: Any, build: Any, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(b"")
    onnx, neither, demo, page, images = (
        without(["onnx"], ["export", model.path, "--only", "onnx", "--out", tmp_path / "build"])[0],
        without(["onnxruntime", "executorch"], ["export", model.path, "--out", tmp_path / "build"])[0],
        *without(
            ["sklearn", "matplotlib", "PIL"],
            ["demo", "--out", tmp_path / "demo"],
            ["report", build.folder, "--no-verify", "--out", tmp_path / "page.html"],
            ["export", model.path, "--calibrate", tmp_path / "images", "--out", tmp_path / "build"],
        ),
    )
    assert {found[0] for found in (onnx, neither, demo, page, images)} == {2}
    assert onnx[2] == "Error: onnxruntime needs the module onnx: pip install 'qn-deploy[onnx]'"
    assert neither[2].startswith("Error: no runtime is installed; ExecuTorch") and neither[2].count("pip install") == 2
    assert demo[2].endswith("pip install 'qn-deploy[demo]'")
    assert page[2].endswith("pip install 'qn-deploy[report]'")
    assert images[2].endswith("pip install 'qn-deploy[images]'")
