from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qn_deploy.errors import InputError
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.manifest import MANIFEST
from qn_deploy.verification import ladder
from qn_deploy.verification.devices import find
from qn_deploy.verification.judge import Check
from qn_deploy.verification.report import Report
from tests.cli.runs import COMMAND, refusal, run, stages


@pytest.mark.slow
def test_verify_passes_on_the_real_runtimes(build: Any) -> None:
    done = subprocess.run([COMMAND, "verify", build.folder, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert stages(done.stderr) == [f"reading {build.folder}", "model.onnx on onnxruntime, model.pte on ExecuTorch XNNPACK"]
    report = json.loads(done.stdout)
    assert sorted(report) == ["checks", "folder", "passed"]
    assert (report["folder"], report["passed"]) == (str(build.folder), True)
    assert [check["rung"] for check in report["checks"]] == [1, 1, 3, 3, 4, 4, 4, 4, 5, 5]
    assert all(sorted(check) == ["found", "limit", "passed", "rung", "what"] for check in report["checks"])


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = run("devices", "setup", "qemu")
    assert result.exit_code == 2
    assert "Error: " in result.stderr and "Not a directory; TMPDIR and XDG_CACHE_HOME choose other folders" in result.stderr
    assert "Traceback" not in result.output


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """What verification finds, instead of a climb; the arguments are kept in `limits`."""
    checks: list[Check] = [Check(1, "model.onnx: weights", "1 of 1 tables", "exact", True)]
    manifest = SimpleNamespace(config=ExportConfig("x86"))

    def climb(folder: Path, min_sqnr_db: float | None, devices: tuple[str, ...], model: object, progress: object) -> Report:
        checks.append(Check(5, "loss", "SQNR 7.0 dB", f"limit {min_sqnr_db}", None))
        return Report(str(folder), manifest, tuple(checks))  # type: ignore[arg-type]

    monkeypatch.setattr(ladder, "verify", climb)
    return checks


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_verify_exits_with_1_if_a_check_failed(found: list[Check], json_flag: list[str]) -> None:
    assert run("verify", "somewhere", "--min-sqnr", "30", *json_flag).exit_code == 0
    assert found[-1].limit == "limit 30.0"
    found.append(Check(3, "model.onnx to [simulation]", "2 steps", "<= 1 step", False))
    result = run("verify", "somewhere", *json_flag)
    assert result.exit_code == 1
    assert found[-1].limit == "limit None"
    if json_flag:
        assert json.loads(result.stdout)["passed"] is False
    else:
        assert "FAIL" in result.stdout
        assert "1 check failed" in result.stdout


@pytest.mark.parametrize(
    ("target", "machine", "ready", "command"),
    [
        ("x86", "aarch64", ("adb:pixel",), ""),
        ("arm", "aarch64", ("adb:pixel",), ""),
        ("arm", "x86_64", ("cpu", "qemu:cortex-a76", "adb:pixel"), "qn-deploy verify 'a build' --device adb:pixel"),
        ("arm", "x86_64", ("cpu", "qemu:cortex-a53", "qemu:cortex-a76"), "qn-deploy verify 'a build' --device qemu:cortex-a76"),
        ("arm", "x86_64", ("cpu",), "qn-deploy devices setup qemu"),
    ],
)
def test_verify_names_the_device_that_stands_for_the_target(
    monkeypatch: pytest.MonkeyPatch, target: str, machine: str, ready: tuple[str, ...], command: str
) -> None:
    monkeypatch.setattr(find.platform, "machine", lambda: machine)
    monkeypatch.setattr(find, "list_devices", lambda: tuple(find.Found(name, True, "") for name in ready))
    assert find.next_device(target, Path("a build")) == command


def test_verify_refuses_what_is_no_build(build: Any, tmp_path: Path) -> None:
    assert "holds no manifest.json" in refusal(run("verify", tmp_path))
    assert "holds no manifest.json" in refusal(run("verify", tmp_path / "nowhere"))
    folder = Path(shutil.copytree(build.folder, tmp_path / "build"))
    (folder / "model.onnx").write_bytes(b"changed")
    assert "model.onnx is not the file that was exported" in refusal(run("verify", folder))
    (folder / MANIFEST).write_text("{")
    assert "manifest.json is damaged" in refusal(run("verify", folder, "--json"))


def test_only_errors_about_the_input_become_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception) -> None:
        def climb(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(ladder, "verify", climb)

    raising(InputError("this and that"))
    assert refusal(run("verify", "somewhere")) == "Error: this and that"
    raising(ZeroDivisionError("a bug of ours"))
    assert isinstance(run("verify", "somewhere").exception, ZeroDivisionError)
