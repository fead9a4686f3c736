from __future__ import annotations

import pytest

from qn_deploy.verification import ladder
from tests.verification.folders import run_here


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the runtimes in this process."""
    monkeypatch.setattr(ladder, "run_isolated", run_here)
