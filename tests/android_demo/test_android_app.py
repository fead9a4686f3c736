"""`qn-deploy android --install --check` with a stand-in for adb: its command lines and messages, and a folder as the phone."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qn_deploy import android_app
from qn_deploy.cli import main

STAND_IN = """
import pathlib, sys
phone = pathlib.Path(PHONE)
words = sys.argv[1:]
if words[:1] == ["-s"]:
    if words[1] != "emulator-5554":
        sys.exit(f"adb: device '{words[1]}' not found")
    words = words[2:]
log, app = phone / "log", phone / "app"
if words[:2] == ["install", "-r"]:
    app.write_bytes(pathlib.Path(words[2]).read_bytes())
    print("Performing Streamed Install\\nSuccess")
elif words == ["logcat", "-c"]:
    log.unlink(missing_ok=True)
elif words == ["logcat", "-d", "-v", "raw", "-s", "QN_PARITY:I"]:
    print("--------- beginning of main")
    left = log.read_text().splitlines() if log.exists() else []
    print("\\n".join(left[:-1] if (phone / "slow").exists() else left))  # the last line comes later
    (phone / "slow").unlink(missing_ok=True)
elif words == ["shell", "am", "force-stop", "qndeploy.demo"]:
    pass
elif words == ["shell", "am", "start", "-n", "qndeploy.demo/.MainActivity", "--ez", "check", "true"]:
    if app.exists():
        log.write_text((phone / "says").read_text())
        print("Starting: Intent { cmp=qndeploy.demo/.MainActivity (has extras) }")
    else:
        print("Error type 3\\nError: Activity class {qndeploy.demo/qndeploy.demo.MainActivity} does not exist.")
else:
    sys.exit(f"adb: unknown command {words}")
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is the phone; an adb that reaches it is on PATH."""
    folder, program = tmp_path / "phone", tmp_path / "bin/adb"
    folder.mkdir()
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nPHONE = {str(folder)!r}\n{STAND_IN}")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(android_app, "PAUSE_S", 0.01)
    return folder


@pytest.fixture
def says(phone: Path, build: Any) -> Callable[..., None]:
    """Sets what the app will write to the log: lines as the app writes them, with these facts in place of some."""

    def tell(**changed: object) -> None:
        manifest = hashlib.sha256((build.folder / "manifest.json").read_bytes()).hexdigest()
        facts = {"model": "small", "found": "bit-identical", "limit": "bit-identical", "manifest_sha256": manifest}
        figures = {"file_bytes": 23410, "load_us": 5300, "ram_bytes": 4096, "batch": 1, "p50_us": 91, "p90_us": 94}
        rows: list[dict[str, object]] = [
            {"passed": True, "file": "model.onnx", "runtime": "onnxruntime", **facts, **figures, **changed},
            {"passed": True, "file": "model.stock.qnz", "runtime": "ExecuTorch XNNPACK", **facts, **figures},
            {"passed": True, "file": "model.onnx,model.stock.qnz", "runtime": "onnxruntime to ExecuTorch XNNPACK", **facts},
            {"passed": False, "file": "", "runtime": "", **facts, "model": "another", "found": "manifest.json is damaged"},
        ]
        lines = [f"{'PASS' if row['passed'] else 'FAIL'} {json.dumps(row)}" for row in rows]
        (phone / "says").write_text("\n".join([*lines, "DONE 3 of 4 passed", ""]))

    return tell


def run(build: Any, *options: str | Path) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(main, ["android", str(build.folder), "--name", "small", *map(str, options)])
    return result.exit_code, result.output


def test_installs_and_checks(phone: Path, says: Callable[..., None], build: Any, tmp_path: Path) -> None:
    says()
    (phone / "slow").touch()
    (tmp_path / "app.apk").write_bytes(b"an apk")
    code, out = run(build, "--install", tmp_path / "app.apk", "--check", "--serial", "emulator-5554")
    assert code == 0, out
    assert (phone / "app").read_bytes() == b"an apk"
    rows = [line for line in out.splitlines() if "in the app" in line]
    assert len(rows) == 3 and all("bit-identical" in row and "pass" in row for row in rows)
    assert "p50 0.09 ms, load 5.3 ms" in rows[0] and "another" not in out
    assert "all 3 checks passed" in out


def test_a_program_that_fails_fails_the_command(phone: Path, says: Callable[..., None], build: Any) -> None:
    (phone / "app").touch()
    says(passed=False, found="model.onnx needs the library onnxruntime-android, which is not in this app", limit="runs")
    code, out = run(build, "--check")
    assert code == 1 and "FAIL" in out and "needs the library" in out


def test_another_export_in_the_app_is_refused(phone: Path, says: Callable[..., None], build: Any) -> None:
    (phone / "app").touch()
    says(manifest_sha256="0" * 64)
    code, out = run(build, "--check")
    assert code == 2 and "the app holds another export of small than" in out
    says(model="other")
    other = CliRunner().invoke(main, ["android", str(build.folder), "--name", "digits", "--check"])
    assert "the app holds no model digits" in other.output


def test_what_is_missing_is_said(phone: Path, says: Callable[..., None], build: Any, tmp_path: Path) -> None:
    says()
    assert "install it first" in run(build, "--check")[1]
    assert "make apk" in run(build, "--install", tmp_path / "none.apk")[1]
    code, out = run(build, "--check", "--serial", "0123")
    assert code != 0 and "device '0123' not found" in out


def test_a_check_that_does_not_end(phone: Path, says: Callable[..., None], build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (phone / "app").touch()
    (phone / "says").write_text("PASS {}\n")
    monkeypatch.setattr(android_app, "PATIENCE_S", 1.0)
    code, out = run(build, "--check")
    assert code != 0 and "did not end its check within 1 s" in out
