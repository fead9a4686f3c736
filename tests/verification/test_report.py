from __future__ import annotations

import json
from typing import Any

import pytest

from qn_deploy.verification.judge import Check
from qn_deploy.verification.report import Report

GOOD = Check(3, "model.onnx to [simulation]", "bit-identical", "bit-identical", True)
BAD = Check(4, "model.onnx to model.pte", "2 steps", "<= 1 step", False)
TOLD = Check(5, "loss", "SQNR 7.0 dB", "reported", None)
NONE: Any = None  # a report prints without its manifest


@pytest.mark.parametrize(
    ("checks", "passed", "verdict"),
    [
        ((), False, "nothing was checked"),
        ((TOLD,), False, "nothing was checked"),
        ((GOOD, TOLD), True, "all 1 checks passed"),
        ((GOOD, BAD, TOLD), False, "1 check failed"),
        ((BAD, BAD), False, "2 checks failed"),
    ],
)
def test_the_verdict(checks: tuple[Check, ...], passed: bool, verdict: str) -> None:
    report = Report("build", NONE, checks)
    assert report.passed is passed
    assert str(report).splitlines()[-1] == verdict


def test_a_report_prints_as_a_table_and_as_json() -> None:
    report = Report("build", NONE, (GOOD, BAD))
    text = str(report)
    assert "[simulation]" in text  # shown as it is, not taken for markup
    assert "FAIL" in text and "parity ladder" in text and "\x1b" not in text
    data = json.loads(report.to_json())
    assert (data["folder"], data["passed"]) == ("build", False)
    assert data["checks"][1] == {"rung": 4, "what": BAD.what, "found": "2 steps", "limit": "<= 1 step", "passed": False}
