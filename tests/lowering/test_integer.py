from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written, find_exporters
from qn_deploy.lowering.integer import IntegerReference, inexact_operators
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.lowering.rules import ONNXRUNTIME, XNNPACK, Rules
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import IntWeight, PQWeight

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
AssertExact = Callable[[Program, Batch], None]
Write = Callable[[str, str, Activations], Written]

Q = torch.ops.quantized_decomposed
RUNTIMES = ("executorch", "onnx")
RULES = {"executorch": XNNPACK, "onnx": ONNXRUNTIME}


class OneLayer(nn.Module):
    """A layer of two inputs and one output, quantized by hand: scales 0.5, 0.25 and 2, zero points 3, 0 and 1."""

    def __init__(self, convolution: bool, rectified: bool) -> None:
        super().__init__()
        self.convolution, self.rectified = convolution, rectified
        weight = torch.tensor([[3, -7]], dtype=torch.int8)
        self.register_buffer("weight", weight[:, :, None, None] if convolution else weight)
        self.register_buffer("scale", torch.tensor([0.25]))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int64))
        self.bias = nn.Parameter(torch.tensor([0.3125]))

    def forward(self, x: Tensor) -> Tensor:
        x = Q.dequantize_per_tensor(Q.quantize_per_tensor(x, 0.5, 3, -128, 127, torch.int8), 0.5, 3, -128, 127, torch.int8)
        weight = Q.dequantize_per_channel(self.weight, self.scale, self.zero, 0, -127, 127, torch.int8)
        y = nn.functional.conv2d(x, weight, self.bias) if self.convolution else nn.functional.linear(x, weight, self.bias)
        steps: Tensor = Q.quantize_per_tensor(y.relu() if self.rectified else y, 2.0, 1, -128, 127, torch.int8)
        return steps


#    x              steps - 3   sum + bias 0.3125/0.125 = 2.5 -> 2   * 0.125 / 2    + 1
RULE = [
    ([1.0, -0.25], 1),  #  2, 0         6 + 2 =    8             0.5 -> 0       1, a tie goes to the even number
    ([4.5, 0.5], 2),  #  9, 1          20 + 2 =   22             1.375 -> 1     2
    ([3.5, -0.5], 3),  # 7, -1         28 + 2 =   30             1.875 -> 2     3
    ([0.0, 4.0], -2),  # 0, 8         -56 + 2 =  -54            -3.375 -> -3   -2
    ([62.0, -65.5], 79),  # 124, -131  1289 + 2 = 1291          80.6875 -> 81   clamped input: -131 is -128 - 3
    ([1e9, -1e9], 81),  # 124, -131    the same
]


@pytest.mark.parametrize("convolution", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("rules", [ONNXRUNTIME, XNNPACK])
def test_the_rule_in_literal_bytes(convolution: bool, rectified: bool, rules: Rules) -> None:
    x = torch.tensor([row for row, _ in RULE])
    x = x[:, :, None, None] if convolution else x
    exported = torch.export.export(OneLayer(convolution, rectified), (x,))
    (found,) = IntegerReference(exported, rules)((x,))
    assert found.dtype is torch.int8
    expected = [82 if row[0] > 50 else step for row, step in RULE]
    assert found.flatten().tolist() == [max(step, 1) if rectified else step for step in expected]
    # The simulation keeps the bias as it is, and so rounds the first one up: 0.53 -> 1.
    assert exported.module()(x).flatten().tolist()[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_exact_operator_is_bit_identical_in_the_runtime(programs: Programs, write: Write, runtime: str) -> None:
    written = write("operators", runtime, Activations.STATIC)
    reference = IntegerReference(written.lowered.exported, RULES[runtime])
    assert inexact_operators(written.lowered.exported) == []
    shape = programs("operators").golden.inputs[0].shape
    for seed, loudness in ((0, 1.0), (1, 0.1), (2, 10.0)):  # 10: most activations are clamped
        x = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * loudness,)
        (found,) = find_exporters()[runtime].run(written.data, (x,))
        for name, one, other in zip(("strided", "grouped", "depthwise", "mean", "linear"), found, reference(x), strict=True):
            assert torch.equal(one, other), f"{name}: {(one != other).float().mean():.2%} of values differ"


def test_the_reference_is_within_a_step_of_the_simulation(programs: Programs, write: Write) -> None:
    x = programs("operators").golden.inputs
    lowered = write("operators", "onnx", Activations.STATIC).lowered
    reference = IntegerReference(lowered.exported, ONNXRUNTIME)
    output = next(node for node in lowered.exported.graph.nodes if node.op == "output").args[0]
    first, simulated = reference(x)[0], lowered.simulate(x)[0]
    steps = ((first - simulated) / float(output[0].args[1])).round()
    assert steps.abs().max() <= 1
    assert (steps != 0).float().mean() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_calls_of_a_shared_layer_are_bit_identical(programs: Programs, write: Write, runtime: str) -> None:
    written = write("shared", runtime, Activations.STATIC)
    x = programs("shared").golden.inputs
    expected = IntegerReference(written.lowered.exported, RULES[runtime])(x)
    assert torch.equal(find_exporters()[runtime].run(written.data, (x,))[0][0], expected[0])


class Pairs(nn.Module):
    """Sums and products of two inputs, also of two shapes."""

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        one = b[:, :, :1, :1]
        return a + b, torch.relu(a + b), a * b, one * a, a + one


@pytest.mark.slow
def test_sums_and_products_are_bit_identical_in_both_runtimes(make_program: MakeProgram, assert_exact: AssertExact) -> None:
    torch.manual_seed(5)
    x = torch.randn(64, 64, 16, 16) * 3 + 1, torch.randn(64, 64, 16, 16) * 0.7 - 0.5
    program = make_program(Pairs(), x, {})
    assert_exact(program, x)


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.3


def test_a_product_with_a_number_is_reported_as_inexact(make_program: MakeProgram) -> None:
    x = (torch.randn(4, 8),)
    assert len(inexact_operators(lower(make_program(Scaled(), x, {}), Form(Activations.STATIC)).exported)) == 1


class Up(nn.Module):
    """Transposed convolutions, one with a clamp behind it, and their concatenation, which has a wider range than the clamp."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.other = (
            nn.ConvTranspose2d(channels, 8, 4, stride=2, padding=1),
            nn.ConvTranspose2d(channels, 8, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.relu6(self.one(x)), self.other(x)], 1)

    def weights(self) -> dict[str, IntWeight]:
        return {name: IntWeight.from_float(value, per_channel=False) for name, value in self.named_parameters() if name.endswith("weight")}


@pytest.mark.slow
def test_transposed_convolutions_are_bit_identical_in_both_runtimes(make_program: MakeProgram, assert_exact: AssertExact) -> None:
    torch.manual_seed(0)
    x, model = (torch.randn(32, 16, 12, 12) * 9,), Up(16)
    program = make_program(model, x, model.weights())
    assert_exact(program, x)


class Again(nn.Module):
    """One weight: of a convolution, and of transposed ones, which run twice, and in other groups."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(16, 16, 3, padding=1), nn.ConvTranspose2d(16, 32, 3, groups=2)
        self.up.weight = self.down.weight

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.up(self.down(x).relu())[:, ::2]
        return self.up(x.relu()), nn.functional.conv_transpose2d(x, self.down.weight, dilation=2, groups=4)


@pytest.mark.slow
def test_layers_that_read_one_weight_are_bit_identical_in_both_runtimes(
    make_program: MakeProgram, random_table: RandomTable, assert_exact: AssertExact
) -> None:
    torch.manual_seed(0)
    x = (torch.randn(8, 16, 9, 9),)
    program = make_program(Again(), x, {"down.weight": random_table((16, 16, 3, 3), 9, per_row=False)})
    assert_exact(program, x)


def test_a_transposed_convolution_of_more_than_float32_holds_is_reported_as_inexact(make_program: MakeProgram) -> None:
    model = Up(512)
    lowered = lower(make_program(model, (torch.randn(1, 512, 4, 4),), model.weights()), Form(Activations.STATIC))
    assert inexact_operators(lowered.exported) == ["conv_transpose2d", "conv_transpose2d_1"]


class Mean(nn.Module):
    """The mean of what a convolution lets through unchanged; by itself a mean would not be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = nn.Conv2d(32, 32, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(self.identity(x), 1)


def mean_inputs(zero: int) -> Batch:
    """Images whose range puts the zero point at `zero`, with many means that end in .5."""
    steps = torch.randint(-128, 128, (64, 32, 2, 2), generator=torch.Generator().manual_seed(0))
    return ((steps - zero).float() / 64,)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [-28, -27])
def test_a_mean_is_bit_identical_in_both_runtimes(make_program: MakeProgram, zero: int) -> None:
    x = mean_inputs(zero)
    program = make_program(Mean(), x, {"identity.weight": IntWeight.from_float(torch.eye(32)[:, :, None, None])})
    found = {}
    for name, exporter in find_exporters().items():
        written = write_file(exporter, program, Activations.STATIC)
        exported = written.lowered.exported
        mean = next(node for node in exported.graph.nodes if node.target is torch.ops.aten.adaptive_avg_pool2d.default)
        assert mean.args[0].args[2] == zero, "the calibrated range is not the one that this test is about"
        (found[name],) = exporter.run(written.data, (x,))[0]
        assert inexact_operators(exported) == []
        assert torch.equal(found[name], IntegerReference(exported, exporter.rules)(x)[0])


def test_weights_of_one_layer_only_leave_the_float_layer_float(make_program: MakeProgram) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    x = (torch.randn(4, 8),)
    program = make_program(model, x, {"1.weight": IntWeight.from_float(model.get_parameter("1.weight"))})
    exported = lower(program, Form(Activations.STATIC)).exported
    step = float([node for node in exported.graph.nodes if node.target is Q.dequantize_per_tensor.default][-1].args[1])
    assert ((IntegerReference(exported, ONNXRUNTIME)(x)[0] - exported.module()(*x)[0]) / step).abs().max() < 1.5
