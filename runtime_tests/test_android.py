"""The demo app's Java on this machine: every fixture by onnxruntime's Java API and by ExecuTorch gets the same verdicts as from Python."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from qn_deploy.exporters.to_onnx.shell import SIDECAR
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.export import export
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.table_blob import DType, Layout, pack
from runtime_tests.conftest import FIXTURES

TOOLS = Path(__file__).parents[1] / "android_demo/tools"
SHELLS = ("conv net, static", "MLP, dynamic", "K=2048, residual and int4, float activations")
TABLES = ("K=16 d=2 G=8, static", "K=2048, residual and int4, static", "local and residual embedding, dynamic")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tools() -> dict[str, ModuleType]:
    """The modules of android_demo/tools, as its scripts import each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        modules = {name: importlib.import_module(name) for name in ("toolchain", "fixtures")}
    if reason := modules["toolchain"].missing(["javac", "mvn"]):
        pytest.skip(reason)
    return modules


def test_java_agrees_with_python(tools: dict[str, ModuleType], climbs: Callable[[str], Any], tmp_path: Path) -> None:
    fixtures = tools["fixtures"].Fixtures(tmp_path / "app")
    programs: list[str] = []
    for name in FIXTURES:
        climb = climbs(name)
        programs += fixtures.add_model(_identifier(name), climb.folder, climb.report)
        if name in SHELLS:
            config = ExportConfig(activations=climb.activations.value, only=("onnx",), options={"onnx": {"shell": True}})
            export(climb.program, tmp_path / name, config)
            programs += fixtures.add_model(f"{_identifier(name)}-shell", tmp_path / name, climb.report)
    fixtures.add_sidecar((tmp_path / SHELLS[-1] / SIDECAR).read_bytes())
    fixtures.add_forms(_blobs(climbs), [(climbs("linear, static").folder / "model.stock.qnz").read_bytes()])
    fixtures.add_agreements()
    kinds = Counter(program.rpartition("/")[2] for program in programs)
    assert kinds["model.onnx"] == len(FIXTURES) + len(SHELLS) >= 20
    assert kinds["model.stock.qnz"] + kinds["model.pte"] == len(FIXTURES) and kinds["model.shell.onnx"] == len(SHELLS)
    command = [sys.executable, TOOLS / "jvm.py", fixtures.folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    ran = re.search(r"^OK \((\d+) tests\)$", done.stdout, re.MULTILINE)
    assert ran and int(ran[1]) >= len(programs), done.stdout[-1000:]


def _identifier(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def _blobs(climbs: Callable[[str], Any]) -> list[bytes]:
    """A blob for each layout and dtype of a convolution, and one for each other kind of table."""
    conv = climbs("conv net, static").program.weights["grouped.weight"]
    blobs = [pack(conv, layout, dtype) for layout, dtype in product(Layout, DType)]
    weights = [weight for name in TABLES for weight in climbs(name).program.weights.values()]
    codes, centroids = torch.arange(15, dtype=torch.uint8).reshape(5, 3), torch.arange(-40, 40, dtype=torch.int8).reshape(1, 16, 5)
    odd = PQWeight(codes, centroids, torch.ones(1), (5, 15))  # the last code of 4 bits leaves half a byte
    return blobs + [pack(weight, Layout.OIS, DType.INT8) for weight in [odd, *weights] if isinstance(weight, PQWeight)]
