"""For the tests of the app: the demo's model, made by the command that its users type."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import qn_deploy


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder of `qn-deploy demo`."""
    folder = tmp_path_factory.mktemp("demo")
    done = qn_deploy("demo", "--out", folder, timeout=1200)
    assert done.code == 0, done.err
    return folder / "build"
