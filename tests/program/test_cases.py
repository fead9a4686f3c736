"""Models that real users' models boil down to, in a folder of their own: each is captured as it computes, or refused in one sentence."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from qn_deploy.errors import QnDeployError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
FILES = sorted(CASES.glob("*.py"))
LIMIT = 1e-4  # of the largest value: constants are computed and norms folded in another order

pytestmark = pytest.mark.slow


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    return module


@pytest.mark.skipif(not FILES, reason=f"{CASES} is not there")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_case_is_captured_or_refused_in_one_sentence(file: Path) -> None:
    case = load(file)
    shapes = getattr(case, "shapes", None if getattr(case, "dynamic", True) else ())
    try:
        program = capture(case.model, case.example, dynamic_shapes=shapes)
    except QnDeployError as error:
        assert "\n" not in str(error)
        return
    with torch.no_grad():
        outputs = unlifted(program.exported)(*program.golden.inputs)
    for found, expected in zip(outputs, program.golden.outputs, strict=True):
        scale = float(expected.double().nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(found, expected, rtol=0, atol=LIMIT * scale, equal_nan=True)
