"""The command line, run in this process or in its own, and what it tells."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from click.testing import CliRunner, Result

from qn_deploy.cli import main

COMMAND = Path(sys.executable).with_name("qn-deploy")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="qn-deploy")


def refusal(result: Result) -> str:
    """The one line that a user sees when the input is at fault."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def stages(text: str) -> list[str]:
    """The stage lines of standard error, without their seconds; nothing else may stand there."""
    lines = text.splitlines()
    assert all(line.startswith("  ") and line.endswith(" s)") for line in lines), text
    return [line.strip().rpartition(" (")[0] for line in lines]


def pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)
