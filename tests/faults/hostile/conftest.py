"""Every hostile file has a marker planted that must never appear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "outside" / "marker"


@pytest.fixture(autouse=True)
def _nothing_is_planted(marker: Path) -> Any:
    marker.parent.mkdir()
    yield
    assert not list(marker.parent.iterdir())
