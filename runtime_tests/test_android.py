"""The library's Java on the runtimes' Android libraries, over a shim: every fixture gets the same verdict as from Python."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from conftest import qn_deploy
from qn_deploy.exporters.to_onnx.shell import SIDECAR
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.export import export
from qn_deploy.verification.ladder import verify
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.table_blob import DType, Layout, pack
from runtime_tests.conftest import FIXTURES

TOOLS = Path(__file__).parents[1] / "android_demo/tools"
SHELLS = ("conv net, static", "MLP, dynamic", "K=2048, residual and int4, float activations")
TABLES = ("K=16 d=2 G=8, static", "K=2048, residual and int4, static", "local and residual embedding, dynamic")
TIMEOUT_S = 1800
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tools() -> dict[str, ModuleType]:
    """The modules of android_demo/tools, as its scripts import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        modules = {name: importlib.import_module(name) for name in ("toolchain", "fixtures")}
    if reason := modules["toolchain"].missing(["javac", "mvn", "npm", "gcc", "clang++", "readelf"]):
        pytest.skip(reason)
    return modules


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder of the demo, whose model reads drawn digits."""
    folder = tmp_path_factory.mktemp("demo")
    done = qn_deploy("demo", "--out", folder, timeout=1200)
    assert done.code == 0, done.err
    return folder / "build"


@dataclass(frozen=True)
class Filled:
    """The folder that the Java tests read, and the programs in it, as MODEL/FILE."""

    folder: Path
    programs: list[str]


@pytest.fixture(scope="module")
def every(tools: dict[str, ModuleType], climbs: Callable[[str], Any], digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """Every fixture, some as shells too; the demo's model with model.pte, for our backend; blobs, containers, verdicts."""
    work = tmp_path_factory.mktemp("every")
    fixtures = tools["fixtures"].Fixtures(work / "app")
    programs: list[str] = []
    for name in FIXTURES:
        climb = climbs(name)
        programs += fixtures.add_model(_identifier(name), climb.folder, climb.report)
        if name in SHELLS:
            config = ExportConfig(activations=climb.activations.value, only=("onnx",), options={"onnx": {"shell": True}})
            export(climb.program, work / name, config)
            programs += fixtures.add_model(f"{_identifier(name)}-shell", work / name, climb.report)
    programs += fixtures.add_model("digits", digits, verify(digits), pte=True)
    fixtures.add_sidecar((work / SHELLS[-1] / SIDECAR).read_bytes())
    fixtures.add_forms(_blobs(climbs), [(climbs("linear, static").folder / "model.stock.qnz").read_bytes()])
    fixtures.add_agreements()
    return Filled(fixtures.folder, programs)


@pytest.fixture(scope="module")
def demo_only(tools: dict[str, ModuleType], digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """The demo's model in its three forms."""
    fixtures = tools["fixtures"].Fixtures(tmp_path_factory.mktemp("demo only") / "app")
    return Filled(fixtures.folder, fixtures.add_model("digits", digits, verify(digits), pte=True))


def run_java(filled: Filled, *options: str) -> str:
    """What the tests print; they pass, and there is one at least for each program."""
    command = [sys.executable, TOOLS / "jvm.py", filled.folder, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    ran = re.search(r"^OK \((\d+) tests\)$", done.stdout, re.MULTILINE)
    assert ran and int(ran[1]) >= len(filled.programs), done.stdout[-1000:]
    print(done.stdout[-1000:])
    return done.stdout


def test_android_libraries_agree_with_python(every: Filled) -> None:
    kinds = Counter(program.rpartition("/")[2] for program in every.programs)
    assert kinds["model.onnx"] == len(FIXTURES) + len(SHELLS) + 1 >= 20 and kinds["model.shell.onnx"] == len(SHELLS)
    assert kinds["model.stock.qnz"] + kinds["model.pte"] == len(FIXTURES) + 2
    said = run_java(every)
    assert re.search(r"^model\.pte: \d+ of 100 drawn digits are right", said, re.MULTILINE)  # with our backend


def test_minified_classes_agree_too(every: Filled) -> None:
    """Library, runtimes and tests as R8 in full mode leaves them."""
    run_java(every, "--minified")


def test_emulated_arm_agrees(demo_only: Filled) -> None:
    """The libraries for 64-bit ARM, under qemu."""
    assert {program.rpartition("/")[2] for program in demo_only.programs} == {"model.onnx", "model.stock.qnz", "model.pte"}
    run_java(demo_only, "--arm64", "qndeploy.ProgramsTest")


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def _blobs(climbs: Callable[[str], Any]) -> list[bytes]:
    """A blob for each layout, dtype and some numbers of groups of a convolution, and one for each other kind of table."""
    conv = climbs("conv net, static").program.weights["grouped.weight"]
    blobs = [pack(conv, *form) for form in product(Layout, DType, (1, 4, 32))]
    skewed = replace(conv, codes=conv.codes % 2)  # which coding makes smaller
    blobs += [pack(skewed, *form, coded=True) for form in product(Layout, DType, (1, 4, 32))]
    weights = [weight for name in TABLES for weight in climbs(name).program.weights.values()]
    codes, centroids = torch.arange(15, dtype=torch.uint8).reshape(5, 3), torch.arange(-40, 40, dtype=torch.int8).reshape(1, 16, 5)
    odd = PQWeight(codes, centroids, torch.ones(1), (5, 15))  # the last code of 4 bits leaves half a byte
    tables = [weight for weight in [odd, *weights] if isinstance(weight, PQWeight)]
    return blobs + [pack(weight, Layout.OIS, DType.INT8, coded=coded) for weight in tables for coded in (False, True)]
