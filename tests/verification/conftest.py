from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qn_deploy.verification import ladder
from tests.verification.builds import DYNAMIC, NONE, Detector, Words, image, make
from tests.verification.folders import run_here


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the runtimes in this process."""
    monkeypatch.setattr(ladder, "run_isolated", run_here)


@pytest.fixture(scope="session")
def builds(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The right builds that faults are put into, by name, each made when it is first asked for."""
    made: dict[str, Path] = {}
    makers: dict[str, Callable[[Path], Path]] = {
        "both": lambda folder: Path(build.folder),
        "detector": lambda folder: make(folder, Detector(), (image(),)),
        "other": lambda folder: make(folder, Detector(), (image(),)),
        "dynamic": lambda folder: make(folder, Words(), (torch.randint(100, (2, 10)),), DYNAMIC),
        "float": lambda folder: make(folder, Words(), (torch.randint(100, (2, 10)),), NONE),
    }

    def find(name: str) -> Path:
        if name not in made:
            torch.manual_seed(len(made))
            made[name] = makers[name](tmp_path_factory.mktemp(name) / "build")
        return made[name]

    return find
