from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporters.to_executorch.pte import named_data
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import XNNPACK
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import CompressedWeight, PQWeight
from qn_deploy.weights.table_blob import HEADER, Layout, is_blob, read

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
    stored = {
        read(data).int8().numpy().tobytes(): HEADER.unpack_from(data)[3] for data in named_data(written.data).values() if is_blob(data)
    }
    layouts = {name: Layout(stored[weight.int8().numpy().tobytes()]).name for name, weight in weights.items()}
    assert layouts == {
        "pixel.weight": "OIS",
        "kernel.weight": "OSI",
        "wide.weight": "OSI",
        "grouped.weight": "OSI",
        "depthwise.weight": "SIO",
        "multiplied.weight": "SIO",
    }
    assert not written.notes


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
