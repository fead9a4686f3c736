from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporters.to_executorch.pte import constants
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight
from qn_deploy.weights.packing import code_rows

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Write = Callable[[str, str, Activations], Written]
Twins = Callable[[Written, Batch], Batch]
TOKENS = torch.tensor([[0, 299, 3], [7, 7, 0]])


class Lookups(nn.Module):
    """Embeddings side by side over the same tokens."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(300, 64) for _ in range(count))

    def forward(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return tuple(table(tokens) for table in self.tables)


def test_rows_are_looked_up_exactly_and_stay_codes(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    weights: list[CompressedWeight] = [
        random_table((300, 64), 8, 16, per_row=False),
        random_table((300, 64), 8, 200, books=8),
        random_table((300, 64), 4, 300, books=2),
        IntWeight.from_float(torch.randn(300, 64), per_channel=False),
    ]
    program = make_program(Lookups(len(weights)), (TOKENS,), {f"tables.{n}.weight": weight for n, weight in enumerate(weights)}, ())
    written = write_file(EXPORTER, program, Activations.DYNAMIC)
    for found, weight in zip(twins(written, (TOKENS,)), weights, strict=True):
        assert torch.equal(found, weight.dequantize()[TOKENS])
    held = constants(written.data)
    for weight in weights:
        parts = (weight.int8(),) if isinstance(weight, IntWeight) else (code_rows(weight), weight.centroids)
        assert all(part.numpy().tobytes() in held for part in parts)
        assert weight.dequantize().numpy().tobytes() not in held
    assert len(written.data) <= sum(weight.nbytes for weight in weights) + 24 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.DYNAMIC, Activations.NONE])
def test_a_tied_weight_runs_in_both_places(programs: Programs, write: Write, twins: Twins, activations: Activations) -> None:
    written, x = write("tied", "executorch", activations), programs("tied").golden.inputs
    (found,), (simulated,) = twins(written, x), written.lowered.simulate(x)
    assert (found - simulated).abs().max() < 0.01 * simulated.abs().max()
