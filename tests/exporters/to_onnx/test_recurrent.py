from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import CompressedWeight, PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]


class Recurrent(nn.Module):
    """A recurrent layer and nothing else."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(8, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_weights_are_floats_by_the_time_they_are_read(
    make_program: MakeProgram, random_table: RandomTable, optimized: Callable[[bytes], Counter[str]], kind: type[nn.RNNBase]
) -> None:
    rows = 48 if kind is nn.LSTM else 36
    weights: dict[str, CompressedWeight] = {
        "layer.weight_ih_l0": random_table((rows, 8), 4),
        "layer.weight_hh_l0": random_table((rows, 12), 4),
    }
    x = (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)),)
    written = write_file(EXPORTER, make_program(Recurrent(kind), x, weights, ()), Activations.DYNAMIC)
    found = optimized(written.data)
    assert found[kind.__name__] == 1
    assert not found.keys() & {"DequantizeLinear", "Cast", "Gather", "Mul"}
    torch.testing.assert_close(EXPORTER.run(written.data, (x,))[0][0], written.lowered.simulate(x)[0])
