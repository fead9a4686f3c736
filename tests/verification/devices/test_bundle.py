"""What the bundle is made of, without the network: `make test-arm` and CI make it for real."""

from __future__ import annotations

import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement

from qn_deploy.cli import main
from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.runner import Runner, compile_for_device, find_runners
from qn_deploy.processes import call
from qn_deploy.verification.devices import bundle

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"


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
        ToolchainError, match=r"onnxruntime \S+ is installed.*known are 0\.1, 0\.2\. Install one .*: pip install onnxruntime==0\.1 or pip"
    ):
        _ = runner.version


def test_a_runtime_that_is_not_installed_is_told_in_a_sentence() -> None:
    runner = replace(find_runners()["onnx"], package="no-such-runtime", wheels={"0.1": ""})
    with pytest.raises(ToolchainError, match=r"^no-such-runtime is not installed, .*: pip install no-such-runtime==0\.1$"):
        _ = runner.version


def test_every_version_that_the_constraints_install_is_pinned() -> None:
    lines = [Requirement(line) for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    for runner in find_runners().values():
        tested = {str(line.specifier).removeprefix("==") for line in lines if line.name == runner.package}
        assert tested
        assert tested <= runner.wheels.keys()


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
    (tmp_path / "aarch64-linux-gnu-g++").touch(mode=0o755)  # what else is there does not count
    assert bundle.find_tools() == bundle.Tools(None, None)
    folders = [cache / "qn-deploy/devices" / package / "usr/bin" for package in ("qemu-user-static", "g++-aarch64-linux-gnu")]
    for folder, name in zip(folders, ("qemu-aarch64-static", "aarch64-linux-gnu-g++"), strict=True):
        folder.mkdir(parents=True)
        (folder / name).touch(mode=0o755)
    found = bundle.find_tools()
    assert found.qemu == folders[0] / "qemu-aarch64-static"
    assert found.compiler is not None
    assert found.compiler[-2:] == (str(folders[1] / "aarch64-linux-gnu-g++"), f"--sysroot={folders[1].parents[1]}")


def test_the_fetched_compiler_gets_its_own_libraries_and_nothing_else(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CPLUS_INCLUDE_PATH", "/usr/include")
    root = cache / "qn-deploy/devices/g++-aarch64-linux-gnu"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/aarch64-linux-gnu-g++").write_text("#!/bin/sh\n/usr/bin/env\n")
    (root / "usr/bin/aarch64-linux-gnu-g++").chmod(0o755)
    compiler = bundle.find_tools().compiler
    assert compiler is not None
    environment = dict(line.split("=", 1) for line in call(compiler).out.splitlines())
    assert environment["LD_LIBRARY_PATH"].split(":") == [f"{root}/{folder}/{platform.machine()}-linux-gnu" for folder in ("lib", "usr/lib")]
    assert environment.keys() - {"PWD", "_", "SHLVL", "OLDPWD"} == {"LD_LIBRARY_PATH", "TMPDIR"}  # the shell sets the others


def test_a_compiler_that_fails_is_told_by_its_first_error(tmp_path: Path) -> None:
    script = tmp_path / "cc"
    script.write_text("#!/bin/sh\necho 'note: x' >&2; echo 'a.cpp:1: error: no such type' >&2; echo 'error: more' >&2; exit 1\n")
    script.chmod(0o755)
    with pytest.raises(
        ToolchainError, match=r"^compiling for 64-bit ARM ended with exit code 1: a\.cpp:1: error: no such type; the command was: \S+/cc$"
    ):
        compile_for_device((str(script),))


def test_the_command_lists_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["devices"], terminal_width=200)
    assert result.exit_code == 0
    assert "qn-deploy devices setup qemu" in " ".join(result.stdout.replace("│", " ").split())
    result = CliRunner().invoke(main, ["devices", "setup", "vax"])
    assert result.exit_code == 2
