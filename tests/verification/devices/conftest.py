from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qn_deploy.errors import ToolchainError
from qn_deploy.verification.devices.bundle import find_bundle, find_tools

STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.fixture
def bundle() -> Path:
    """The device bundle, where it was made."""
    try:
        return find_bundle()
    except ToolchainError as error:
        pytest.skip(str(error))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts adb, ssh and scp that reach these devices on PATH; gives the folder that is the device's file system."""

    def connect(machine: str = "aarch64", **devices: str) -> Path:
        programs, root = tmp_path / "bin", tmp_path / "device"
        programs.mkdir(exist_ok=True)
        (root / "data/local/tmp").mkdir(parents=True, exist_ok=True)
        for name in ("adb", "ssh", "scp"):
            (programs / name).write_text(f"#!{sys.executable}\n{STAND_IN.read_text()}")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("STAND_IN_ROOT", str(root))
        monkeypatch.setenv("STAND_IN_DEVICES", " ".join(f"{name}={state}" for name, state in devices.items()))
        monkeypatch.setenv("STAND_IN_MACHINE", machine)
        monkeypatch.setenv("STAND_IN_QEMU", str(find_tools().qemu))
        return root

    return connect
