"""What the bundle is made of, without the network: `make test-arm` and CI make it for real."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from qn_deploy.cli import main
from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.runner import Runner, compile_for_device, find_runners
from qn_deploy.verification.devices import bundle
from qn_deploy.verification.devices.packages import fetch_debian


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_both_exporters_bring_a_runner_of_the_installed_version() -> None:
    runners = find_runners()
    assert {name: runner.program for name, runner in runners.items()} == {"executorch": "qn_runner", "onnx": "qn_onnx_runner"}
    for runner in runners.values():
        assert runner.version == version(runner.package)
        assert all(len(sha256) == 64 for sha256 in runner.wheels.values())


def test_a_version_that_is_not_pinned_is_refused() -> None:
    runner = replace(find_runners()["onnx"], wheels={"0.1": "", "0.2": ""})
    with pytest.raises(
        ToolchainError, match=r"onnxruntime \S+ is installed.*known are 0\.1, 0\.2\. Install one.*: pip install onnxruntime==0\.2"
    ):
        _ = runner.version


def test_another_source_is_another_bundle(tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    installed = version("torch")
    runner = Runner("r", "torch", {installed: "0" * 64}, sources, lambda *_: None)

    def place(changed: Runner = runner) -> Path:
        return bundle._place({"r": changed})

    before = place()
    (sources / "notes.txt").write_text("no source")
    assert place() == before
    (sources / "r.cpp").write_text("int main() {}")
    assert place() != before
    assert place(replace(runner, wheels={installed: "1" * 64})) != place()


def test_without_a_bundle_a_device_says_how_to_make_it(cache: Path) -> None:
    with pytest.raises(ToolchainError, match=r"the device bundle .* is not there; make it: qn-deploy devices setup qemu"):
        bundle.find_bundle()
    assert not cache.exists()


def test_tools_that_were_fetched_are_found(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bundle.find_tools() == bundle.Tools(None, None)
    programs = cache / "qn-deploy/devices/tools/usr/bin"
    programs.mkdir(parents=True)
    for name in ("qemu-aarch64-static", "aarch64-linux-gnu-g++"):
        (programs / name).touch(mode=0o755)
    compiler = (str(programs / "aarch64-linux-gnu-g++"), f"--sysroot={cache / 'qn-deploy/devices/tools'}")
    assert bundle.find_tools() == bundle.Tools(programs / "qemu-aarch64-static", compiler)


def test_without_apt_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="can't run apt-get: No such file or directory"):
        fetch_debian(("zlib1g",), "arm64", tmp_path / "downloads", tmp_path / "target")


def test_a_compiler_that_fails_is_told_by_its_first_error(tmp_path: Path) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\necho 'note: x' >&2; echo 'a.cpp:1: error: no such type' >&2; echo 'error: more' >&2; exit 1\n")
    script.chmod(0o755)
    with pytest.raises(ToolchainError, match=r"cc ended with exit code 1: a\.cpp:1: error: no such type$"):
        compile_for_device((str(script),))


def test_the_command_lists_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["devices"], terminal_width=200)
    assert result.exit_code == 0
    assert "qn-deploy devices setup qemu" in " ".join(result.stdout.replace("│", " ").split())
    result = CliRunner().invoke(main, ["devices", "setup", "vax"])
    assert result.exit_code == 2
