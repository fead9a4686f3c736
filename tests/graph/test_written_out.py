"""LSTMs with a projection, BatchNorm by statistics of the batch: what is written out computes the same, and runs in both formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qn_deploy import capture, compress, export, verify
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table

aten = torch.ops.aten


class Recurrent(nn.Module):
    """A projected LSTM of two layers in both directions, then one without projection."""

    def __init__(self) -> None:
        super().__init__()
        self.projected = nn.LSTM(8, 24, 2, proj_size=12, batch_first=True, bidirectional=True)
        self.plain, self.head = nn.LSTM(24, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.plain(self.projected(x)[0])[0][:, -1])
        return scores


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(Recurrent().eval(), (torch.randn(4, 5, 8),))


def targets(program: Program) -> list[object]:
    return [node.target for node in program.exported.graph.nodes]


def test_only_the_projected_one_is_written_out(program: Program) -> None:
    assert targets(program).count(aten.lstm.input) == 1
    assert targets(program).count(aten.linear.default) == 1 + 4 * (
        1 + 5 + 5
    )  # of the input, and in each step of the state and the projection


def test_its_steps_compute_the_same(program: Program) -> None:
    (found,) = program.exported.module()(*program.golden.inputs)
    assert torch.allclose(found, program.golden.outputs[0], atol=1e-6)


@pytest.mark.slow
def test_its_weights_are_compressed_and_run_in_both_formats(program: Program, tmp_path: Path) -> None:
    recipe = Recipe((Rule(Table(4, 16), module="LSTM"), Rule(Int8())))
    small = compress(program, recipe, [program.golden.inputs])
    build = export(small, tmp_path / "build")
    assert build.manifest.weights["projected.weight_hr_l1_reverse"].kind == "table"
    assert set(build.manifest.files) == {"model.onnx", "model.pte"}
    assert verify(tmp_path / "build").passed


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d, (6, 8)), (nn.BatchNorm1d, (6, 8, 5)), (nn.BatchNorm2d, (6, 8, 5, 4))])
def test_a_norm_without_statistics_takes_those_of_each_batch(norm: type[nn.BatchNorm1d], shape: tuple[int, ...], affine: bool) -> None:
    module = norm(8, affine=affine, track_running_stats=False).eval()
    if affine:
        nn.init.normal_(module.weight)
        nn.init.normal_(module.bias)
    captured = capture(module, (torch.randn(shape),))
    assert not any("norm" in str(target) for target in targets(captured))
    for batch in (2, 9):
        x = torch.randn(batch, *shape[1:]) * 3 + 1
        (found,) = captured.exported.module()(x)
        assert torch.allclose(found, module(x), atol=1e-5)


@pytest.mark.slow
def test_a_norm_without_statistics_runs_in_both_formats(tmp_path: Path) -> None:
    norm = nn.BatchNorm2d(16, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), norm, nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    captured = capture(model, (torch.randn(4, 3, 12, 12),))
    export(compress(captured, Recipe((Rule(Int8()),)), [captured.golden.inputs]), tmp_path / "build")
    report = verify(tmp_path / "build", min_sqnr_db=30.0)
    assert report.passed
