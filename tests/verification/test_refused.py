"""What is refused before any rung, and outputs that an export has lost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qn_deploy import ExportConfig, calibrate, capture, compress, export, verify
from qn_deploy.errors import ExportError, InputError
from qn_deploy.exporting.manifest import GOLDEN
from qn_deploy.recipe import Int8, Recipe, Rule
from tests.verification.builds import NONE, make
from tests.verification.folders import Folder, failed
from tests.verification.test_planted import REWRITE

STALE = ("model.onnx", GOLDEN)


@pytest.mark.parametrize("name", STALE)
def test_a_file_of_another_build_is_not_the_one_that_was_exported(
    name: str, builds: Callable[[str], Path], here: None, tmp_path: Path
) -> None:
    folder = Folder(Path(shutil.copytree(builds("detector"), tmp_path / "copy")))
    stale = (builds("other") / name).read_bytes()
    (folder.path / name).write_bytes(stale)
    with pytest.raises(InputError, match=rf"{name} is not the file that was exported"):
        verify(folder.path)
    folder.write(name, stale)  # and if the manifest is made to agree, a rung tells, or the steps of the other build
    if name == GOLDEN:
        with pytest.raises(InputError, match="holds no multiples of it"):
            verify(folder.path)
    else:
        assert failed(verify(folder.path))[0] == (1, REWRITE)


def test_a_simulation_that_is_nan_is_refused(builds: Callable[[str], Path], here: None, tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(builds("both"), tmp_path / "copy")))
    folder.golden(lambda held: held["simulated/onnx/0"][0].fill_(torch.nan))
    with pytest.raises(InputError, match="holds no multiples of it"):
        verify(folder.path)


@pytest.mark.parametrize("name", ["model.onnx", "model.pte", "model.stock.qnz", GOLDEN])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_file_that_is_cut_off_or_gone_is_named(name: str, damage: str, build: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(build.folder, tmp_path / "copy"))
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        verify(folder)


def test_no_file_is_no_success(builds: Callable[[str], Path], here: None, tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(builds("detector"), tmp_path / "copy")))
    folder.manifest(lambda held: held.update(files={}))
    with pytest.raises(InputError, match="lists no program"):
        verify(folder.path)


class Pixels(nn.Module):
    """Boxes in pixels and scores of 0 to 1 in one output: one step for both leaves nothing of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 10)
        with torch.no_grad():
            self.mix.weight[:4] *= 1000.0

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)  # type: ignore[no-any-return]


def test_a_program_that_lost_an_output_is_refused_at_export(tmp_path: Path) -> None:
    inputs = (torch.rand(2, 40, 16),)
    with pytest.raises(ExportError, match=r"the output output is lost in the program for onnx: 6 of 10 channels .*--allow-constant"):
        make(tmp_path / "build", Pixels(), inputs, recipe=Recipe((Rule(Int8()),)))
    assert not (tmp_path / "build").exists()
    make(tmp_path / "float", Pixels(), inputs, NONE, recipe=Recipe((Rule(Int8()),)))  # as the message says


def test_an_export_that_allows_it_says_so_in_verify(tmp_path: Path, here: None) -> None:
    inputs = (torch.rand(2, 40, 16),)
    program = calibrate(compress(capture(Pixels(), inputs), Recipe((Rule(Int8()),))), [inputs])
    export(program, tmp_path, ExportConfig(only=("onnx",), allow_constant=True))
    report = verify(tmp_path)
    (told,) = [check for check in report.checks if check.limit == "allowed by the export"]
    assert "6 of 10 channels of dimension 2 (4, 5, 6, 7, 8, 9)" in told.found and report.passed
