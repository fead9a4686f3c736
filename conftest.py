"""For all tests: skips fail where nothing may be skipped, and one build, made once a session by the real command line.

QN_REQUIRE=all, as CI sets it, turns every skip into a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from qn_deploy import calibrate, capture, compress, save
from qn_deploy.program.program import Program
from qn_deploy.recipe import Recipe, Rule, Table

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips itself, or by a mark."""
    return _required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that skips itself while it is collected."""
    return _required((yield))


def _required(report: Report) -> Report:
    expected_failure = hasattr(report, "wasxfail")  # pytest reports it as a skip
    if os.environ.get("QN_REQUIRE") == "all" and report.outcome == "skipped" and not expected_failure:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"QN_REQUIRE=all allows no skips. {reason}"
    return report


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Random weights and inputs of a test are the same whichever tests ran before it in this process."""
    torch.manual_seed(0)


COMMAND = Path(sys.executable).with_name("qn-deploy")
RECIPE = Recipe((Rule(Table(9, 4), module="Conv2d"), Rule(Table(4, 4), module="Linear")), title="small")


class Small(nn.Module):
    """Convolutions and a linear layer, all of whose operators have an exact integer rule: image [N, 1, 8, 8] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        x = self.body(self.norm(self.stem(image)).relu()).relu()
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Done:
    """What a `qn-deploy` process left."""

    code: int
    out: str
    err: str


def qn_deploy(*arguments: str | Path, timeout: float = 300) -> Done:
    """Runs the installed command as a user does."""
    done = subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=timeout, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Model:
    """A module, the program that it was compressed to, and the model.pt of it, with ranges for static int8 and without."""

    module: nn.Module
    program: Program
    inputs: tuple[Tensor, ...]
    path: Path
    uncalibrated: Path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A compressed Small, saved."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, module = (torch.randn(4, 1, 8, 8),), Small().eval()
    plain = compress(capture(module, inputs, dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=16)},)), RECIPE)
    program = calibrate(plain, [(torch.randn(8, 1, 8, 8),) for _ in range(2)])
    folder = tmp_path_factory.mktemp("model")
    save(program, folder / "model.pt")
    save(plain, folder / "uncalibrated.pt")
    return Model(module, program, inputs, folder / "model.pt", folder / "uncalibrated.pt")


@dataclass(frozen=True)
class Build:
    """A build folder and how `qn-deploy export` went."""

    folder: Path
    export: Done


@pytest.fixture(scope="session")
def build(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build of the model for all exporters, static int8. Never change it: copy it."""
    folder = tmp_path_factory.mktemp("export") / "build"
    return Build(folder, qn_deploy("export", model.path, "--target", "arm", "--out", folder))
