"""`qn-deploy verify --device`: the whole way, with the real bundle under qemu, straight and behind stand-ins for adb and ssh."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qn_deploy.cli import main

pytestmark = pytest.mark.device


def verify(build: Any, *names: str) -> tuple[int, list[dict[str, Any]]]:
    from click.testing import CliRunner

    devices = [word for name in names for word in ("--device", name)]
    result = CliRunner().invoke(main, ["verify", str(build.folder), "--json", *devices])
    return result.exit_code, json.loads(result.stdout)["checks"]


def lines(checks: list[dict[str, Any]], device: str) -> list[tuple[int, str, str]]:
    return [(check["rung"], check["what"], check["found"]) for check in checks if f" on {device}" in check["what"]]


def expected(device: str) -> list[tuple[int, str, str]]:
    """All that a static program of two files is checked for on a device, each of it bit-identical."""
    rungs = [(3, f"{name} on {device} to integer reference") for name in ("model.onnx", "model.pte")]
    for name in ("model.onnx", "model.pte"):
        rungs += [(4, f"{name} on {device}, tables to dense weights"), (4, f"{name} on {device} to this machine")]
    return [(rung, what, "bit-identical") for rung, what in [*rungs, (4, f"model.onnx to model.pte on {device}")]]


def test_on_qemu_a_phone_and_a_board(build: Any, bundle: Path, stand_in: Callable[..., Path]) -> None:
    root = stand_in(pixel="device", board="device")
    names = ("qemu:cortex-a53", "adb:pixel", "ssh:board")
    code, checks = verify(build, "cpu", *names)
    assert code == 0
    for name in names:
        assert lines(checks, name) == expected(name)
    for place in ("data/local/tmp/qn-deploy", "home/.cache/qn-deploy/device"):
        assert [path.name for path in (root / place).iterdir()] == [bundle.name]


def test_a_runtime_that_crashes_on_the_device_is_a_line_of_the_report(
    build: Any, bundle: Path, stand_in: Callable[..., Path], tmp_path: Path
) -> None:
    root = stand_in(pixel="device")
    assert verify(build, "adb:pixel")[0] == 0
    runner = root / "data/local/tmp/qn-deploy" / bundle.name / "bin/qn_runner"
    illegal = tmp_path / "illegal"
    shutil.copy(runner, illegal)
    data = bytearray(illegal.read_bytes())
    entry = int.from_bytes(data[24:32], "little")  # the address of _start, in such an ELF file also its place
    data[entry : entry + 4] = bytes(4)  # udf #0, an instruction that is none
    runner.write_bytes(data)
    code, checks = verify(build, "adb:pixel")
    assert code == 1
    (crash,) = [check for check in checks if check["passed"] is False]
    assert crash["what"] == "model.pte on adb:pixel to integer reference"
    assert crash["found"] == "the runtime crashed with SIGILL"
    assert [what for _, what, found in lines(checks, "adb:pixel") if found == "bit-identical"] == [
        f"model.onnx on adb:pixel{rest}" for rest in (" to integer reference", ", tables to dense weights", " to this machine")
    ]
