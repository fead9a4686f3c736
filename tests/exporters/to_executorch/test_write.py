"""What ExecuTorch can't take is refused by name; what it holds otherwise than as int8 still lies as a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.exporters.to_executorch import EXPORTER, tile_blob
from qn_deploy.exporters.to_executorch.options import ExecutorchOptions
from qn_deploy.exporters.to_executorch.pte import named_data
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import IntWeight, PQWeight
from qn_deploy.weights.table_blob import is_blob, is_coded, unpack

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]


class Recurrent(nn.Module):
    """A GRU and a layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(16, 32), nn.Linear(32, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0])  # type: ignore[no-any-return]


def expanded(data: bytes) -> set[bytes]:
    """The constants that stand in a program as tables, dense."""
    return {unpack(constant) for constant in named_data(data).values() if is_blob(constant)}


def dense(values: Tensor) -> bytes:
    return values.contiguous().numpy().tobytes()


@pytest.mark.slow
def test_a_recurrent_layer_holds_float_tables_beside_int8_ones_and_takes_every_batch(
    make_program: MakeProgram, random_table: RandomTable
) -> None:
    x, batch = (torch.randn(3, 5, 16),), ({1: torch.export.Dim("batch", min=1, max=9)},)
    int8 = IntWeight.from_float(torch.randn(96, 16))
    weights = {"gru.weight_ih_l0": int8, "gru.weight_hh_l0": random_table((96, 32), 4), "head.weight": random_table((40, 32), 4)}
    written = write_file(EXPORTER, make_program(Recurrent(), x, weights, (), batch), Activations.DYNAMIC)
    recurrent, head = weights["gru.weight_hh_l0"], weights["head.weight"]
    assert expanded(written.data) == {dense(int8.dequantize()), dense(recurrent.dequantize()), dense(head.int8())}
    assert written.notes[0].startswith("gru is written out step by step")
    assert written.facts == {}
    for size in (1, 2, 9):
        x = (torch.randn(3, size, 16),)
        torch.testing.assert_close(EXPORTER.run(written.data, (x,))[0][0], written.lowered.simulate(x)[0], rtol=1e-4, atol=1e-4)


def test_a_transposed_convolution_is_stored_input_channels_last(make_program: MakeProgram, random_table: RandomTable) -> None:
    table = random_table((16, 8, 3, 3), 9, per_row=False)
    program = make_program(nn.Sequential(nn.ConvTranspose2d(16, 8, 3, stride=2)), (torch.randn(2, 16, 4, 4),), {"0.weight": table})
    assert expanded(write_file(EXPORTER, program, Activations.STATIC).data) == {dense(table.int8().permute(1, 2, 3, 0))}
    assert expanded(write_file(EXPORTER, program, Activations.NONE).data) == {dense(table.dequantize().permute(1, 2, 3, 0))}


def test_a_transposed_convolution_in_groups_is_stored_group_by_group(make_program: MakeProgram, random_table: RandomTable) -> None:
    table = random_table((16, 8, 3), 3, per_row=False)
    program = make_program(nn.Sequential(nn.ConvTranspose1d(16, 16, 3, groups=2)), (torch.randn(2, 16, 9),), {"0.weight": table})
    written = write_file(EXPORTER, program, Activations.STATIC)
    assert expanded(written.data) == {b"".join(dense(group.permute(1, 2, 0)) for group in table.int8().chunk(2))}
    assert (written.notes, written.dense) == ((), ())


def test_an_int8_weight_in_a_blob_is_no_table(make_program: MakeProgram, random_table: RandomTable) -> None:
    """It lies in one where it expands to floats; `verify` looks for tables that a manifest leaves out."""
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 40))
    table = random_table((40, 32), 4)
    weights = {"0.weight": IntWeight.from_float(torch.randn(32, 16)), "2.weight": table}
    written = write_file(EXPORTER, make_program(model, (torch.randn(3, 16),), weights), Activations.NONE)
    assert len(expanded(written.data)) == 2
    assert EXPORTER.table_hashes(written.data) == {sha256(dense(table.int8())).hexdigest()}


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC, Activations.NONE])
def test_entropy_coded_tables_are_the_same_program(
    make_program: MakeProgram, random_table: RandomTable, twins: Callable[..., tuple[Tensor, ...]], activations: Activations
) -> None:
    model = nn.Sequential(nn.Conv2d(16, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 9, 32))
    tables = {"0.weight": random_table((64, 16, 3, 3), 9, 256), "3.weight": random_table((32, 64 * 9), 4, 256)}
    weights = {name: used_unevenly(table) for name, table in tables.items()}
    inputs = (torch.randn(2, 16, 5, 5),)
    program = make_program(model, inputs, weights)
    coded = write_file(EXPORTER, program, activations)
    plain = write_file(EXPORTER, program, activations, ExecutorchOptions(coding="none"))
    forms = [[is_coded(constant) for constant in named_data(each.data).values() if is_blob(constant)] for each in (coded, plain)]
    assert forms == [[True, True], [False, False]]
    assert EXPORTER.dense(coded.data) == EXPORTER.dense(plain.data)
    assert len(coded.data) < len(plain.data) - 300
    for name, companion in coded.companions.items():
        assert len(companion) < len(plain.companions[name]) - 300
    assert all(map(torch.equal, twins(coded, inputs), twins(plain, inputs)))


@pytest.mark.slow
def test_tables_that_stay_in_memory_are_not_coded(make_program: MakeProgram, random_table: RandomTable) -> None:
    table = used_unevenly(random_table((256, 256), 4, 256, 2))
    program = make_program(nn.Sequential(nn.Linear(256, 256)), (torch.randn(2, 256),), {"0.weight": table})
    written = write_file(EXPORTER, program, Activations.STATIC, ExecutorchOptions(memory="compressed"))
    assert sum(tile_blob.is_blob(constant) for constant in named_data(written.data).values()) == 1
    assert not any(map(is_coded, named_data(written.data).values()))


def used_unevenly(table: PQWeight) -> PQWeight:
    """The table with small codes more often than large ones."""
    return replace(table, codes=(table.codes.int() ** 2 // table.centroids.shape[1]).to(table.codes.dtype))
