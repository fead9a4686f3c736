"""The readers in C++ under libFuzzer with sanitizers, and those in Java under mutations with checksums made right."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qn_deploy.exporters.compiler import find_compiler
from qn_deploy.exporters.kernels.build import FLAGS, FOLDER, SOURCES
from qn_deploy.exporters.to_executorch import build as native
from qn_deploy.exporting.export import ExportConfig, export
from qn_deploy.weights.table_blob import DType, Layout, pack
from tests.conftest import random_table
from tests.faults.trials import count

pytestmark = [pytest.mark.slow, pytest.mark.faults]
TESTS = Path(__file__).parents[1] / "exporters"
TOOLS = Path(__file__).parents[2] / "android_demo/tools"
SANITIZED = ("-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
TIMEOUT_S = 4000


def fuzzed(command: list[str | Path], runs: int, folder: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    limits = ("-seed=1", "-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1")
    options = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [*map(str, command), f"-runs={runs}", *limits], capture_output=True, text=True, cwd=folder, env=options, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (ran,) = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
    assert int(ran) >= runs
    with capsys.disabled():
        print(f"\n{what}: {int(ran):,} runs, none found anything")


@pytest.fixture
def clang() -> tuple[str, ...]:
    if shutil.which("clang++") is None:
        pytest.skip("no clang++ on PATH (Debian, Ubuntu: apt-get install clang)")
    return ("clang++",)


def test_blobs_in_cpp(clang: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = TESTS / "to_executorch"
    include = f"-I{Path(native.__file__).parent / 'native'}"
    sources = (folder / "fuzz_blobs.cpp", FOLDER / "table.cpp")
    subprocess.run([*clang, "-std=c++17", *SANITIZED, include, *sources, "-o", tmp_path / "fuzz", native.find_zlib(clang)], check=True)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, line in enumerate((folder / "fuzz_corpus.txt").read_text().splitlines()):
        (corpus / str(index)).write_bytes(bytes.fromhex(line))
    fuzzed([tmp_path / "fuzz", corpus], count(10_000_000, 100_000), tmp_path, capsys, "table and graph blobs in C++")


def test_packed_tables_in_cpp(clang: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_compiler()
    source = str(TESTS / "kernels/fuzz_tables.cpp")
    subprocess.run([*clang, *FLAGS, *SANITIZED, *map(str, SOURCES), source, "-o", tmp_path / "fuzz"], check=True)
    fuzzed([tmp_path / "fuzz", "-max_len=1024"], count(20_000, 500), tmp_path, capsys, "packed tables of the kernels in C++")


@pytest.fixture
def java(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """android_demo/tools/jvm.py."""
    monkeypatch.syspath_prepend(str(TOOLS))
    if reason := importlib.import_module("toolchain").missing(["javac", "mvn"]):
        pytest.skip(reason)
    return importlib.import_module("jvm")


def test_readers_in_java(java: ModuleType, model: Any, build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, models, shell = (tmp_path / "fixtures" / name for name in ("good", "models/small", "shell"))
    for folder in (good, models, shell):
        folder.mkdir(parents=True)
    weights = [(random_table((16, 8, 3, 3), 9), 4), (random_table((12, 8, 1, 1), 4, 300, 2), 12), (random_table((9, 9, 1, 1), 3, 5), 3)]
    for index, ((weight, groups), layout, dtype) in enumerate(product(weights, Layout, DType)):
        (good / f"{index}.blob").write_bytes(pack(weight, layout, dtype))
        (good / f"{index}-grouped.blob").write_bytes(pack(weight, layout, dtype, groups))
        skewed = replace(weight, codes=(weight.codes.int() % 3).to(weight.codes.dtype))  # which coding makes smaller
        (good / f"{index}-coded.blob").write_bytes(pack(skewed, layout, dtype, coded=True))
    for index in range(8):
        shutil.copy(build.folder / "model.stock.qnz", good / f"{index}.qnz")
    for name in ("manifest.json", "golden.safetensors"):
        shutil.copy(build.folder / name, models)
    export(model.program, tmp_path / "shell", ExportConfig(only=("onnx",), options={"onnx": {"shell": True}}))
    shutil.copy(tmp_path / "shell/model.shell.safetensors", shell)
    runs = count(100_000, 5_000)
    classes, around = java.runtime_classes(tmp_path / "runtimes"), [*map(java.jar, java.JUNIT), java.jar("android-all")]
    java.javac(tmp_path / "classes", [*classes, *around], java.LIBRARY, java.DEMO, java.TESTS)
    path = ":".join(map(str, [tmp_path / "classes", *classes, *around]))
    command = ["java", "-Xmx1g", "-cp", path, f"-Dqn.fixtures={tmp_path / 'fixtures'}", f"-Dqn.runs={runs}"]
    done = subprocess.run(
        [*command, "org.junit.runner.JUnitCore", "qndeploy.MutationsTest"], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout[:5000] + done.stderr[-3000:]
    (line,) = re.findall(r"mutations: .*", done.stdout)
    with capsys.disabled():
        print(f"\nreaders in Java, {line}")
