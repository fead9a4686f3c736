from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import ONNXRUNTIME
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight
from tests.processor import adds_in_16_bits

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Write = Callable[[str, str, Activations], Written]
Optimized = Callable[[bytes], "Counter[str]"]
BATCH, LENGTH = Dim("batch", min=2, max=32), Dim("length", min=2, max=32)
SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def output_step(written: Written) -> float:
    output = next(node for node in written.lowered.exported.graph.nodes if node.op == "output").args[0][0]
    return float(output.args[1])


@pytest.mark.slow
@given(
    columns=st.integers(1, 8),
    block=st.sampled_from([1, 2, 4, 8]),
    books=st.integers(1, 4),
    size=st.sampled_from([2, 16, 256]),
    out=st.integers(1, 40),
    rank=st.integers(2, 4),
    bias=st.booleans(),
    per_row=st.booleans(),
)
@settings(SETTINGS, max_examples=6)
def test_a_static_layer_is_exact_in_onnxruntime(
    make_program: MakeProgram,
    random_table: RandomTable,
    columns: int,
    block: int,
    books: int,
    size: int,
    out: int,
    rank: int,
    bias: bool,
    per_row: bool,
) -> None:
    table = random_table((out, columns * block), block, size, min(books, columns), per_row)
    x = (torch.randn(64, *(3, 2)[: rank - 2], columns * block, generator=torch.Generator().manual_seed(1)),)
    written = write_file(
        EXPORTER, make_program(nn.Sequential(nn.Linear(columns * block, out, bias)), x, {"0.weight": table}), Activations.STATIC
    )
    (shipped,), (plain,), (twin,) = (
        EXPORTER.run(data, (x,), optimized=level)[0]
        for data, level in ((written.data, True), (written.data, False), (EXPORTER.dense(written.data), True))
    )
    assert torch.equal(shipped, IntegerReference(written.lowered.exported, ONNXRUNTIME)(x)[0])
    assert torch.equal(shipped, twin)
    steps = (plain - written.lowered.simulate(x)[0]) / output_step(written)
    assert steps.abs().max() < 1.001
    assert (steps.abs() > 0.5).float().mean() < 0.002  # float sums in another order: a tie here and there


@pytest.mark.slow
@given(columns=st.integers(1, 8), books=st.integers(1, 4), rank=st.integers(1, 4), bias=st.booleans())
@settings(SETTINGS, max_examples=4)
def test_a_dynamic_layer_multiplies_integers_and_then_the_two_scales(
    make_program: MakeProgram, random_table: RandomTable, columns: int, books: int, rank: int, bias: bool
) -> None:
    table = random_table((24, columns * 4), 4, 16, min(books, columns))
    x = (torch.randn(*(3, 2, 2)[: rank - 1], columns * 4, generator=torch.Generator().manual_seed(1)),)
    model = nn.Sequential(nn.Linear(columns * 4, 24, bias))
    written = write_file(EXPORTER, make_program(model, x, {"0.weight": table}, ()), Activations.DYNAMIC)
    shipped, plain, twin = (
        EXPORTER.run(data, (x,), optimized=level)[0][0]
        for data, level in ((written.data, True), (written.data, False), (EXPORTER.dense(written.data), True))
    )
    (simulated,) = written.lowered.simulate(x)
    assert torch.equal(shipped, twin)
    torch.testing.assert_close(shipped, simulated, rtol=1e-5, atol=1e-6)
    if not adds_in_16_bits():  # else sums saturate where the optimizer is off, which alone knows x64quantprecision
        torch.testing.assert_close(plain, simulated, rtol=1e-5, atol=1e-6)


def test_static_layers_are_fused(write: Write, optimized: Optimized) -> None:
    found = optimized(write("shared", "onnx", Activations.STATIC).data)
    assert found == Counter(QuantizeLinear=1, QGemm=3, DequantizeLinear=1)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [{0: BATCH}, {0: BATCH, 1: LENGTH}], ids=["batch", "batch and length"])
def test_a_static_layer_of_more_dimensions_is_flattened_to_the_fused_gemm(
    make_program: MakeProgram, random_table: RandomTable, optimized: Optimized, dynamic: dict[int, Dim]
) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24))
    weights = {"0.weight": random_table((32, 16), 4), "2.weight": random_table((24, 32), 4)}
    x, other = (torch.randn(*size, 16, generator=torch.Generator().manual_seed(1)) for size in ((8, 5), (13, 5 if 1 not in dynamic else 9)))
    written = write_file(EXPORTER, make_program(model, (x,), weights, dynamic_shapes=(dynamic,)), Activations.STATIC)
    found = optimized(written.data)
    assert (found["QGemm"], found["Add"], found["MatMulIntegerToFloat"]) == (2, 0, 0)
    for values in (x, other):
        (shipped,) = EXPORTER.run(written.data, ((values,),))[0]
        assert torch.equal(shipped, IntegerReference(written.lowered.exported, ONNXRUNTIME)((values,))[0])


def test_dynamic_layers_are_fused(write: Write, optimized: Optimized) -> None:
    found = optimized(write("words", "onnx", Activations.DYNAMIC).data)
    assert found["DynamicQuantizeMatMul"] == 3
    assert not found.keys() & {"MatMulInteger", "DequantizeLinear", "DynamicQuantizeLinear", "MatMul", "Gemm"}


@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC, Activations.NONE])
def test_a_shared_layer_runs(programs: Programs, write: Write, activations: Activations) -> None:
    written = write("shared", "onnx", activations)
    x = programs("shared").golden.inputs
    (found,) = EXPORTER.run(written.data, (x,))[0]
    (expected,) = written.lowered.simulate(x)
    step = output_step(written) if activations is Activations.STATIC else 1e-4
    assert (found - expected).abs().max() <= 1.001 * step
    assert torch.equal(found, EXPORTER.run(EXPORTER.dense(written.data), (x,))[0][0])
