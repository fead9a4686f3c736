from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import ONNXRUNTIME
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Write = Callable[[str, str, Activations], Written]
Optimized = Callable[[bytes], "Counter[str]"]


@pytest.mark.slow
@given(
    groups=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 4),
    dimensions=st.integers(1, 2),
    kernel=st.sampled_from([1, 3]),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    size=st.sampled_from([4, 256]),
    bias=st.booleans(),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_a_static_convolution_is_exact_in_onnxruntime(
    make_program: MakeProgram,
    random_table: RandomTable,
    groups: int,
    width: int,
    dimensions: int,
    kernel: int,
    stride: int,
    padding: int,
    size: int,
    bias: bool,
) -> None:
    kind = nn.Conv1d if dimensions == 1 else nn.Conv2d
    layer = kind(groups * width, groups * 8, kernel, stride, padding, groups=groups, bias=bias)
    table = random_table(tuple(layer.weight.shape), kernel**dimensions, size)
    x = (torch.randn(4, groups * width, *(6, 5)[:dimensions], generator=torch.Generator().manual_seed(1)),)
    written = write_file(EXPORTER, make_program(nn.Sequential(layer), x, {"0.weight": table}), Activations.STATIC)
    shipped, plain, twin = (
        EXPORTER.run(data, (x,), optimized=level)[0][0]
        for data, level in ((written.data, True), (written.data, False), (EXPORTER.dense(written.data), True))
    )
    assert torch.equal(shipped, IntegerReference(written.lowered.exported, ONNXRUNTIME)(x)[0])
    assert torch.equal(shipped, twin)
    output = next(node for node in written.lowered.exported.graph.nodes if node.op == "output").args[0][0]
    steps = (plain - written.lowered.simulate(x)[0]) / float(output.args[1])
    assert steps.abs().max() < 1.001
    assert (steps.abs() > 0.5).float().mean() < 0.002


def test_every_operator_of_a_small_network_is_fused(write: Write, optimized: Optimized) -> None:
    found = optimized(write("residual", "onnx", Activations.STATIC).data)
    kept = {name: found[name] for name in ("QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm")}
    assert kept == {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)  # the input and the output
    assert not found.keys() & {"Conv", "FusedConv", "Add", "Gemm", "GlobalAveragePool", "ReduceMean", "Gather", "Relu"}


def test_grouped_and_depthwise_convolutions_are_fused(write: Write, optimized: Optimized) -> None:
    found = optimized(write("operators", "onnx", Activations.STATIC).data)
    assert (found["QLinearConv"], found["QLinearGlobalAveragePool"], found["QGemm"]) == (3, 1, 1)
    assert found["QuantizeLinear"] == 1


def test_the_batch_is_dynamic(programs: Programs, write: Write) -> None:
    written = write("residual", "onnx", Activations.STATIC)
    image = programs("residual").golden.inputs[0][:1]
    one, many = ((image,), (image.expand(17, -1, -1, -1).contiguous(),))
    (first,), (rest,) = EXPORTER.run(written.data, (one, many))
    assert torch.equal(first.expand(17, -1), rest)


def test_unoptimised_onnxruntime_is_within_a_step_of_the_simulation(programs: Programs, write: Write) -> None:
    written = write("operators", "onnx", Activations.STATIC)
    x = programs("operators").golden.inputs
    found = EXPORTER.run(written.data, (x,), optimized=False)[0]
    outputs = next(node for node in written.lowered.exported.graph.nodes if node.op == "output").args[0]
    for one, other, node in zip(found, written.lowered.simulate(x), outputs, strict=True):
        assert (one - other).abs().max() <= 1.001 * float(node.args[1])
