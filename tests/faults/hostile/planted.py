"""What plants a marker, and what a command says of a file that holds it.

The commands run in this process, as the child of the supervisor would run them; what may crash is in tests/program and test_models.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qn_deploy.cli.supervisor import execute


class Evil:
    """What plants the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def refused(capsys: pytest.CaptureFixture[str], *words: object, codes: tuple[int, ...] = (2,)) -> str:
    """The line that the command ends with; it has taken no traceback to get there."""
    assert execute([str(word) for word in words]) in codes
    told = capsys.readouterr()
    line = told.err.strip().splitlines()[-1] if told.err.strip() else ""
    assert "Traceback" not in told.err + told.out and "a bug of qn-deploy" not in told.err
    return line
