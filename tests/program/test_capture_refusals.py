from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qn_deploy import noise
from qn_deploy.errors import ExportError
from qn_deploy.program.capture import capture
from qn_deploy.recipe import Recipe, Rule, Table
from tests.program.captured import INPUT, Returns


class Counts(nn.Module):
    """Keeps something from one run for the next, as a cache or a running mean does."""

    def __init__(self, through_a_view: bool) -> None:
        super().__init__()
        self.through_a_view = through_a_view
        self.runs: Tensor
        self.register_buffer("runs", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.runs.view(2, 2)[:1].add_(1) if self.through_a_view else self.runs.add_(1)
        return x[:, :4] + self.runs


class Overwrites(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


@pytest.mark.parametrize("through_a_view", [False, True])
def test_a_model_that_keeps_something_from_run_to_run_is_refused(through_a_view: bool) -> None:
    with pytest.raises(ExportError, match=r"the model's forward changes runs in place; .*Compute a new tensor instead"):
        capture(Counts(through_a_view), INPUT)


def test_a_model_that_writes_into_its_input_is_refused() -> None:
    with pytest.raises(ExportError, match=r"the model's forward changes input x in place"):
        capture(Overwrites(), (torch.ones(2, 2),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.half(), r"0\.weight is torch\.float16; a program computes in float32: call model\.float\(\) first"),
        (lambda model: model.double(), r"0\.weight is torch\.float64; a program computes in float32"),
        (lambda model: model.bfloat16(), r"0\.weight is torch\.bfloat16"),
        (lambda model: model.to("meta"), r"0\.weight is on meta; a program is captured on the CPU: load its values first"),
        (lambda model: noise.attach(model, Recipe((Rule(Table(4, 8)),))), r"0\.weight still carries noise; call qn_deploy\.noise\.remove"),
    ],
    ids=["float16", "float64", "bfloat16", "meta", "noise"],
)
def test_a_model_that_is_not_ready_is_told_what_to_do(change: Callable[[nn.Module], Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU())
    change(model)
    with pytest.raises(ExportError, match=message) as caught:
        capture(model, INPUT)
    assert "\n" not in str(caught.value)


def test_an_input_without_values_is_refused() -> None:
    with pytest.raises(ExportError, match="an example input is on meta; a program is captured on the CPU"):
        capture(nn.Linear(8, 4), (torch.randn(2, 8, device="meta"),))


def test_a_length_that_a_recurrent_layer_fixes_is_named() -> None:
    shapes = ({0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=16)},)
    with pytest.raises(ExportError, match=r"fixes at the example's size, length = 3; .*GRU.* takes sequences of the example's length only"):
        capture(nn.GRU(4, 4, batch_first=True), (torch.randn(2, 3, 4),), dynamic_shapes=shapes)


def test_what_torch_export_cannot_take_is_said_in_one_line() -> None:
    with pytest.raises(ExportError, match=r"torch\.export can't capture Returns: .*Try torch\.export\.export") as caught:
        capture(Returns(lambda y: torch.from_numpy(y.detach().numpy())), INPUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("work", [lambda y: y if y.sum() > 0 else -y, lambda y: y[: int((y > 0).sum())].sum() + (y[y > 0][:3] * 2)[:2]])
def test_what_depends_on_values_is_said_with_the_way_out(work: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ExportError, match=r"Returns: what it runs depends on the values of its tensors: .* capture that, and"):
        capture(Returns(work), INPUT)


def test_what_depends_on_how_many_values_pass_names_the_function() -> None:
    def positives(y: Tensor) -> Tensor:
        found = y[y > 0]
        return found.sum() if found.numel() > 4 else y

    with pytest.raises(
        ExportError, match=r"depends on the values of its tensors, in positives \(\S*test_capture_refusals\.py:\d+\): an if"
    ):
        capture(Returns(positives), INPUT)
