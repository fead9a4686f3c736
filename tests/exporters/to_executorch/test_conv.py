from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporters.to_executorch.pte import named_data
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.integer import IntegerReference, inexact_operators
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import XNNPACK
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight
from qn_deploy.weights.table_blob import HEADER, DType, Layout, is_blob, read

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Write = Callable[[str, str, Activations], Written]
Twins = Callable[[Written, Batch], Batch]


class Convolutions(nn.Module):
    """Every kind of convolution over one input [N, 16, 9, 9]."""

    def __init__(self) -> None:
        super().__init__()
        self.pixel = nn.Conv2d(16, 64, 1)
        self.kernel = nn.Conv2d(16, 64, 3, stride=2, padding=1, bias=False)
        self.wide = nn.Conv2d(16, 32, (1, 5), dilation=(1, 2))
        self.grouped = nn.Conv2d(16, 64, 3, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 5, groups=16, padding=2)
        self.multiplied = nn.Conv2d(16, 32, 3, groups=16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.pixel(x), self.kernel(x).relu(), self.wide(x), self.grouped(x), self.depthwise(x), self.multiplied(x)


class Transposed(nn.Module):
    """Every kind of transposed convolution over one input [N, 16, 7, 7]."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.ConvTranspose2d(16, 8, 3, dilation=2, bias=False)
        self.grouped = nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.dilated = nn.ConvTranspose2d(16, 16, (2, 3), stride=(1, 2), dilation=(3, 2), groups=4)
        self.pixel = nn.ConvTranspose2d(16, 64, 1, groups=2, bias=False)
        self.depthwise = nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1, groups=16)
        self.multiplied = nn.ConvTranspose2d(16, 32, 3, stride=3, dilation=2, groups=16)
        self.line = nn.ConvTranspose1d(16, 12, 5, stride=3, padding=2, output_padding=1, dilation=2, groups=4)
        self.lines = nn.ConvTranspose1d(16, 64, 2, stride=2, groups=16)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        images, line = (self.plain, self.grouped, self.dilated, self.pixel, self.depthwise, self.multiplied), x.flatten(2)
        first, *others = (layer(x) for layer in images)
        return first.relu(), *others, self.line(line), self.lines(line)


def transposed_tables(random_table: RandomTable) -> dict[str, CompressedWeight]:
    return {
        "plain.weight": random_table((16, 8, 3, 3), 9, per_row=False, seed=1),
        "grouped.weight": random_table((16, 4, 3, 3), 6, size=40, per_row=False, seed=2),
        "dilated.weight": random_table((16, 4, 2, 3), 6, size=8, per_row=False, seed=3),
        "pixel.weight": random_table((16, 32, 1, 1), 4, books=2, per_row=False, seed=4),
        "depthwise.weight": random_table((16, 1, 4, 4), 8, size=3, per_row=False, seed=5),
        "multiplied.weight": random_table((16, 2, 3, 3), 9, size=2, per_row=False, seed=6),
        "line.weight": random_table((16, 3, 5), 5, size=5, per_row=False, seed=7),
        "lines.weight": random_table((16, 4, 2), 4, size=4, per_row=False, seed=8),
    }


def stored(written: Written, weights: Mapping[str, CompressedWeight], dtype: DType) -> dict[str, str]:
    """In which layout, and in how many groups, each weight lies in a file as a table of this type."""
    found = {}
    for data in named_data(written.data).values():
        if is_blob(data):
            _, _, kind, layout, _, further, *_ = HEADER.unpack_from(data)
            if kind == dtype:
                found[read(data).int8().numpy().tobytes()] = f"{Layout(layout).name} {1 + int.from_bytes(further, 'little')}"
    return {name.removesuffix(".weight"): found.get(weight.int8().numpy().tobytes(), "") for name, weight in weights.items()}


TRANSPOSED = {
    "plain": "ISO 1",
    "grouped": "ISO 2",
    "dilated": "ISO 4",
    "pixel": "ISO 2",
    "depthwise": "OIS 1",
    "multiplied": "OIS 1",
    "line": "ISO 4",
    "lines": "OIS 1",
}


def tables(random_table: RandomTable) -> dict[str, CompressedWeight]:
    return {
        "pixel.weight": random_table((64, 16, 1, 1), 4, books=2, seed=1),
        "kernel.weight": random_table((64, 16, 3, 3), 9, size=40, seed=2),
        "wide.weight": random_table((32, 16, 1, 5), 5, books=4, seed=3),
        "grouped.weight": random_table((64, 8, 3, 3), 18, size=8, seed=4),
        "depthwise.weight": random_table((16, 1, 5, 5), 5, size=4, seed=5),
        "multiplied.weight": random_table((32, 1, 3, 3), 3, size=8, seed=6),
    }


@pytest.mark.slow
def test_static_layers_of_every_kind_are_exact_and_stored_as_tables(
    make_program: MakeProgram, random_table: RandomTable, twins: Twins
) -> None:
    weights = tables(random_table)
    x = (torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(1)),)
    written = write_file(EXPORTER, make_program(Convolutions(), x, weights), Activations.STATIC)
    expected = IntegerReference(written.lowered.exported, XNNPACK)(x)
    for name, found, reference in zip(weights, twins(written, x), expected, strict=True):
        assert torch.equal(found, reference), name
    assert stored(written, weights, DType.INT8) == {
        "pixel": "OIS 1",
        "kernel": "OSI 1",
        "wide": "OSI 1",
        "grouped": "OSI 1",
        "depthwise": "SIO 1",
        "multiplied": "SIO 1",
    }
    assert not written.notes


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.QNNPACK])
def test_static_transposed_layers_of_every_kind_are_exact_and_stored_as_tables(
    make_program: MakeProgram, random_table: RandomTable, twins: Twins, activations: Activations
) -> None:
    weights = transposed_tables(random_table)
    x = (torch.randn(2, 16, 7, 7, generator=torch.Generator().manual_seed(1)),)
    written = write_file(EXPORTER, make_program(Transposed(), x, weights), activations)
    assert inexact_operators(written.lowered.exported) == []
    expected = IntegerReference(written.lowered.exported, XNNPACK)(x)
    for name, found, reference in zip(weights, twins(written, x), expected, strict=True):
        assert torch.equal(found, reference), name
    assert stored(written, weights, DType.INT8) == TRANSPOSED
    assert (written.notes, written.dense) == ((), ())


@pytest.mark.slow
def test_static_transposed_layers_of_int8_weights_are_exact(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    weights = {name: IntWeight(table.int8(), table.scale) for name, table in transposed_tables(random_table).items()}
    x = (torch.randn(2, 16, 7, 7, generator=torch.Generator().manual_seed(2)),)
    written = write_file(EXPORTER, make_program(Transposed(), x, weights), Activations.STATIC)
    expected = IntegerReference(written.lowered.exported, XNNPACK)(x)
    for name, found, reference in zip(weights, twins(written, x), expected, strict=True):
        assert torch.equal(found, reference), name
    assert not written.notes


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tables", "int8"])
def test_float_transposed_layers_of_every_kind_are_stored_as_tables(
    make_program: MakeProgram, random_table: RandomTable, twins: Twins, form: str
) -> None:
    weights: dict[str, CompressedWeight] = transposed_tables(random_table)
    if form == "int8":
        weights = {name: IntWeight(table.int8(), table.scale) for name, table in weights.items()}
    x = (torch.randn(2, 16, 7, 7, generator=torch.Generator().manual_seed(1)),)
    written = write_file(EXPORTER, make_program(Transposed(), x, weights, ()), Activations.NONE)
    for name, found, simulated in zip(weights, twins(written, x), written.lowered.simulate(x), strict=True):
        torch.testing.assert_close(found, simulated, rtol=1e-5, atol=1e-5, msg=name)
    assert stored(written, weights, DType.FLOAT32) == TRANSPOSED
    assert (written.notes, written.dense) == ((), ())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["operators", "residual"])
def test_networks_are_exact(programs: Programs, write: Write, twins: Twins, name: str) -> None:
    written, x = write(name, "executorch", Activations.STATIC), programs(name).golden.inputs
    for found, reference in zip(twins(written, x), IntegerReference(written.lowered.exported, XNNPACK)(x), strict=True):
        assert torch.equal(found, reference)


@pytest.mark.slow
def test_without_activation_quantization_tables_expand_to_float(programs: Programs, write: Write, twins: Twins) -> None:
    written, x = write("operators", "executorch", Activations.NONE), programs("operators").golden.inputs
    for found, simulated in zip(twins(written, x), written.lowered.simulate(x), strict=True):
        torch.testing.assert_close(found, simulated, rtol=1e-4, atol=1e-5)
