"""The kernels on emulated 64-bit ARM processors, and their readers of packed weights against hostile bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from qn_deploy.exporters.compiler import find_compiler
from qn_deploy.exporters.kernels.build import FLAGS, SOURCES

from .library import HERE

pytestmark = pytest.mark.slow


def needed(*commands: str) -> None:
    if missing := [command for command in commands if shutil.which(command) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")


def compiled(compiler: tuple[str, ...], test: str, folder: Path, *options: str) -> str:
    program = str(folder / "program")
    subprocess.run([*compiler, *FLAGS, *options, *map(str, SOURCES), str(HERE / test), "-o", program], check=True)
    return program


def test_this_processor(tmp_path: Path) -> None:
    done = subprocess.run([compiled(find_compiler(), "kernels_test.cpp", tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[-1]) == (0, "portable"), done.stdout


@pytest.mark.parametrize(
    ("cpu", "paths"), [("cortex-a53", "neon"), ("cortex-a76", "neondot neon"), ("max,sme=off", "neoni8mm neondot neon")]
)
def test_an_arm_processor(tmp_path: Path, cpu: str, paths: str) -> None:
    needed("aarch64-linux-gnu-g++", "qemu-aarch64-static")
    program = compiled(("aarch64-linux-gnu-g++",), "kernels_test.cpp", tmp_path, "-static")
    done = subprocess.run(["qemu-aarch64-static", "-cpu", cpu, program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, f"{paths} portable"), done.stdout


def test_no_bytes_break_the_reader(tmp_path: Path) -> None:
    needed("clang++")
    sanitizers = ("-g", "-O2", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
    program = compiled(("clang++",), "fuzz_tables.cpp", tmp_path, *sanitizers)
    # No allocation may be large. What the sanitizer itself holds is no measure: it differs from run to run.
    limits = ("-malloc_limit_mb=2048", "-rss_limit_mb=0")
    done = subprocess.run([program, "-runs=3000", "-seed=1", "-max_len=1024", *limits], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
