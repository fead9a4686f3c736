"""libqn_onnx_ops.so by CMake, for this machine and for 64-bit ARM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import onnxruntime
import pytest

from qn_deploy.exporters.to_onnx import library

NATIVE = Path(library.__file__).parent / "native"
TOOLCHAIN = NATIVE.parents[1] / "to_executorch/native/aarch64-linux-gnu.cmake"
AARCH64 = 0xB7  # e_machine of ELF


def built(folder: Path, *options: str) -> Path:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed; Debian: apt-get install cmake")
    subprocess.run(["cmake", "-S", NATIVE, "-B", folder, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", folder], check=True, capture_output=True)
    return folder / library.LIBRARY


@pytest.mark.slow
def test_cmake_builds_what_onnxruntime_registers(tmp_path: Path) -> None:
    onnxruntime.SessionOptions().register_custom_ops_library(str(built(tmp_path)))


@pytest.mark.slow
def test_cmake_builds_for_arm(tmp_path: Path) -> None:
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("no cross compiler; Debian: apt-get install g++-aarch64-linux-gnu")
    data = built(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}").read_bytes()
    assert data.startswith(b"\x7fELF") and data[18] == AARCH64


def test_the_library_is_found_by_its_name() -> None:
    """Java loads it by path, and onnxruntime by name."""
    command = library.library_command(("c++",))
    assert f"-Wl,-soname,{library.LIBRARY}" in command
