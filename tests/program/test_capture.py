from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import compress
from qn_deploy.errors import ExportError, InputError
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Recipe, Rule, Table
from qn_deploy.weights.compressed import PQWeight

INPUT = (torch.linspace(-1, 1, 32).reshape(4, 8),)


class Returns(nn.Module):
    """A linear layer whose output leaves the model in any form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.layer(x))


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


def test_the_graph_holds_the_dequantized_weights_and_the_golden_outputs_are_the_float_models() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    compressed = compress(model, Recipe((Rule(Table(4, 8), name="0.weight"),)), INPUT)
    before = {name: value.clone() for name, value in compressed.model.state_dict().items()}
    program = capture(compressed.model, INPUT, reference=compressed.reference, recipe=compressed.recipe, left=compressed.left)
    assert list(program.weights) == ["0.weight"]
    weight = program.weights["0.weight"]
    assert isinstance(weight, PQWeight)
    assert torch.equal(program.exported.state_dict["0.weight"], weight.dequantize())
    assert torch.equal(program.golden.outputs[0], model(*INPUT))
    assert program.recipe == compressed.recipe
    assert all(torch.equal(before[name], value) for name, value in compressed.model.state_dict().items())


FORMS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "tensor": (lambda y: y, 1),
    "tuple": (lambda y: (y, y + 1), 2),
    "list": (lambda y: [y, y + 1], 2),
    "dict": (lambda y: {"scores": y, "more": y + 1}, 2),
    "nested": (lambda y: {"scores": (y, [y + 1]), "more": y * 2}, 3),
}


@pytest.mark.parametrize(
    ("form", "activations"), [*((form, Activations.NONE) for form in FORMS), ("nested", Activations.STATIC), ("dict", Activations.STATIC)]
)
def test_outputs_in_any_form_are_flattened_in_the_graphs_order(form: str, activations: Activations) -> None:
    model = Returns(FORMS[form][0])
    program = capture(model, INPUT, calibration=(INPUT,))
    simulated = lower(program, Form(activations)).simulate(INPUT)
    assert len(program.golden.outputs) == len(simulated) == FORMS[form][1]
    for found, expected in zip(simulated, program.golden.outputs, strict=True):
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("form", [lambda y: (y, 3), lambda y: (y, None), lambda y: {"scores": y, "name": "x"}], ids=["int", "None", "str"])
def test_an_output_that_is_no_tensor_is_refused(form: Callable[[Tensor], Any]) -> None:
    with pytest.raises(InputError, match="a program returns tensors only"):
        capture(Returns(form), INPUT)


@pytest.mark.parametrize("through_a_view", [False, True])
def test_a_model_that_keeps_something_from_run_to_run_is_refused(through_a_view: bool) -> None:
    with pytest.raises(ExportError, match=r"Counts\.forward changes runs in place.*Compute a new tensor instead"):
        capture(Counts(through_a_view), INPUT)


def test_a_model_that_writes_into_its_input_is_refused() -> None:
    with pytest.raises(ExportError, match=r"Overwrites\.forward changes input x in place"):
        capture(Overwrites(), (torch.ones(2, 2),))


def test_an_inplace_relu_is_no_change_of_state() -> None:
    assert isinstance(capture(nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True)), INPUT), Program)


def test_a_length_that_a_recurrent_layer_fixes_is_named() -> None:
    shapes = ({0: torch.export.Dim("batch", max=8), 1: torch.export.Dim("length", max=16)},)
    with pytest.raises(ExportError, match=r"fixes at the example's size, length = 3; .*GRU.* takes sequences of the example's length only"):
        capture(nn.GRU(4, 4, batch_first=True), (torch.randn(2, 3, 4),), shapes)


def test_what_torch_export_cannot_take_is_said_in_one_line() -> None:
    with pytest.raises(ExportError, match=r"torch\.export can't capture Returns: ") as caught:
        capture(Returns(lambda y: y if y.sum() > 0 else -y), INPUT)
    assert "\n" not in str(caught.value)
