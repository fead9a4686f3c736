from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.curves import are_certain, clamp_bounds, curve_steps, function_of, is_certain
from qn_deploy.lowering.integer import inexact_operators
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.lowering.rules import Grid
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import IntWeight

aten = torch.ops.aten
MakeProgram = Callable[..., Program]
AssertExact = Callable[[Program, Batch], None]


def grid(scale: float, zero: int) -> Grid:
    return Grid(torch.tensor(scale), zero)


def test_a_table_in_literal_steps() -> None:
    relu6 = function_of(aten.relu6.default, ("x",))
    steps = curve_steps(relu6, grid(0.25, -28), grid(0.5, -100)).tolist()
    assert steps[:100] == [-100] * 100  # -25 to 0
    assert steps[100:105] == [-100, -100, -99, -98, -98]  # 0, .5, 1, 1.5 and 2 steps: ties go to even numbers
    assert set(steps[124:]) == {-88}  # 6 is 12 steps


def test_arguments_belong_to_the_function() -> None:
    assert clamp_bounds(function_of(aten.hardtanh.default, ("x", -0.5, 2.0))) == (-0.5, 2.0)
    assert clamp_bounds(function_of(aten.relu_.default, ("x",))) == (0.0, torch.inf)
    assert function_of(aten.leaky_relu.default, ("x", 0.5))(torch.tensor([-2.0])).tolist() == [-1.0]


def test_a_tie_is_uncertain_and_so_is_what_rounding_errors_can_move_to_one() -> None:
    relu = function_of(aten.relu.default, ("x",))
    assert not is_certain(relu, grid(0.25, 0), grid(0.5, 0))
    assert not is_certain(relu, grid(0.25 + 2**-23, 0), grid(0.5, 0))
    assert is_certain(relu, grid(0.25, 0), grid(0.25, 0))
    assert is_certain(relu, grid(0.25 + 2**-14, 0), grid(0.5, 0))
    assert is_certain(relu, grid(0.25, 0), grid(0.5, 127))  # all but zero is clamped away
    assert are_certain((0.0, 6.0), 6 / 255)
    assert not are_certain((0.0, 6.0), 12 / 255)  # 6 is 127.5 steps


SCALES = st.floats(2**-9, 2**-3, width=32)
OPERATORS = {
    "Sigmoid": aten.sigmoid.default,
    "Tanh": aten.tanh.default,
    "HardSwish": aten.hardswish.default,
    "Elu": aten.elu.default,
    "LeakyRelu": aten.leaky_relu.default,
    "Gelu": aten.gelu.default,
}


@pytest.mark.parametrize("name", OPERATORS)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(scale=SCALES, zero=st.integers(-128, 127), out=SCALES, out_zero=st.integers(-128, 127))
def test_onnxruntime_computes_the_table(name: str, scale: float, zero: int, out: float, out_zero: int) -> None:
    function = function_of(OPERATORS[name], ("x",))
    assume(is_certain(function, grid(scale, zero), grid(out, out_zero)))
    constants = (
        f"float s = {{{scale}}}, uint8 z = {{{zero + 128}}}, float t = {{{out}}}, uint8 u = {{{out_zero + 128}}}, float one = {{1.0}}"
    )
    body = (
        f"q = QuantizeLinear (x, one, u0) d = DequantizeLinear (q, s, z) f = {name} (d) y = QuantizeLinear (f, t, u) r = Cast <to = 1> (y)"
    )
    text = f'<ir_version: 10, opset_import: ["": 21]> m (float[256] x) => (float[256] r) <{constants}, uint8 u0 = {{0}}> {{ {body} }}'
    model = onnx.parser.parse_model(text).SerializeToString()
    ((found,),) = find_exporters()["onnx"].run(model, ((torch.arange(256.0),),))
    expected = curve_steps(function, grid(scale, zero), grid(out, out_zero)).clamp(-128, 127)
    assert (found.long() - 128).tolist() == expected.tolist()


class Curves(nn.Module):
    """Activations between two convolutions that let everything through unchanged: one joins the layer, two do not."""

    FUNCTIONS = F.relu6, F.gelu, lambda x: F.relu(F.max_pool2d(x, 2))

    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = (nn.ModuleList(nn.Conv2d(4, 4, 1, bias=False) for _ in self.FUNCTIONS) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        layers = zip(self.before, self.FUNCTIONS, self.behind, strict=True)
        return tuple(behind(function(before(x))) for before, function, behind in layers)


@pytest.mark.slow
def test_activations_are_bit_identical_in_both_runtimes(make_program: MakeProgram, assert_exact: AssertExact) -> None:
    identity, model = IntWeight.from_float(torch.eye(4)[:, :, None, None]), Curves()
    x = (torch.linspace(-7.3, 8.1, 1024).reshape(4, 4, 8, 8),)
    program = make_program(model, x, {name: identity for name, _ in model.named_parameters()})
    assert_exact(program, x)


class Ends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.layer(x)
        return torch.sigmoid(y), F.gelu(y, approximate="tanh")


def test_an_activation_that_ends_in_floats_is_reported_as_inexact(make_program: MakeProgram) -> None:
    x = (torch.randn(16, 8),)
    model = Ends()
    lowered = lower(make_program(model, x, {"layer.weight": IntWeight.from_float(model.layer.weight)}), Form(Activations.STATIC))
    assert inexact_operators(lowered.exported) == ["sigmoid", "gelu"]
