"""A wrong command line, or a wrong file, is one line that says what is wrong; exit code 2, no traceback, nothing on standard output."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qn_deploy.cli import main

from .wrong_lines import HEAVY, LINES

LONGEST = 500  # characters of a line that is still read


def run(place: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.chdir(place)
    return CliRunner().invoke(main, words, prog_name="qn-deploy")


@pytest.mark.parametrize(
    ("line", "message"),
    [pytest.param(line, message, id=line, marks=[pytest.mark.slow] if line in HEAVY else []) for line, message in LINES],
)
def test_it_is_told_in_one_line(place: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str) -> None:
    before = sorted(place.rglob("*"))
    result = run(place, shlex.split(line), monkeypatch)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    *stages, told = result.stderr.splitlines()
    assert told.startswith("Error: ") and message in told and len(told) < LONGEST, told
    assert all(re.fullmatch(r"  .* \(\d+\.\d s\)", stage) for stage in stages), result.stderr
    assert [path for path in sorted(place.rglob("*")) if path not in before and "__pycache__" not in path.parts] == []


def test_there_are_150_of_them() -> None:
    assert len(LINES) >= 150 and len({line for line, _ in LINES}) == len(LINES)
    assert {line.split()[0] for line, _ in LINES} >= set(main.commands)
