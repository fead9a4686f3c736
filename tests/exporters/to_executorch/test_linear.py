from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qn_deploy.errors import ExportError
from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporters.to_executorch.pte import named_data
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import XNNPACK
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight
from qn_deploy.weights.table_blob import is_blob, read

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Write = Callable[[str, str, Activations], Written]
Twins = Callable[[Written, Batch], Batch]


class Heads(nn.Module):
    """Linear layers side by side over one input."""

    def __init__(self, sizes: list[int], biases: list[bool]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, out, bias) for out, bias in zip(sizes, biases, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(head(x) for head in self.heads)


def heads(make_program: MakeProgram, weights: list[CompressedWeight], x: Tensor, calibration: object = None) -> Program:
    model = Heads([weight.shape[0] for weight in weights], [index % 2 == 0 for index in range(len(weights))])
    return make_program(model, (x,), {f"heads.{index}.weight": weight for index, weight in enumerate(weights)}, calibration)


def forms(random_table: RandomTable) -> dict[str, CompressedWeight]:
    draw = torch.Generator().manual_seed(0)
    first = random_table((96, 64), 4, 16, seed=5)
    return {
        "K=16, two codes a byte": random_table((96, 64), 4, 16, seed=1),
        "K=200": random_table((320, 64), 8, 200, seed=2),
        "K=300, codes of 16 bits": random_table((320, 64), 8, 300, seed=3),
        "local codebooks": random_table((96, 64), 2, 16, 8, seed=4),
        "residual": PQWeight(first.codes, first.centroids, first.scale, first.shape, residual=first),
        "int4": IntWeight(torch.randint(-7, 8, (96, 64), generator=draw, dtype=torch.int8), torch.full((96,), 0.01), 4),
        "int8": IntWeight.from_float(torch.randn(96, 64, generator=draw)),
    }


@pytest.mark.slow
def test_static_layers_of_every_form_are_exact(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    x = torch.randn(4, 3, 64, generator=torch.Generator().manual_seed(1))
    weights = forms(random_table)
    written = write_file(EXPORTER, heads(make_program, list(weights.values()), x), Activations.STATIC)
    expected = IntegerReference(written.lowered.exported, XNNPACK)((x,))
    for name, found, reference in zip(weights, twins(written, (x,)), expected, strict=True):
        assert torch.equal(found, reference), name
    assert not written.notes


@pytest.mark.slow
def test_each_form_is_stored_as_it_is(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    weights = forms(random_table)
    written = write_file(EXPORTER, heads(make_program, list(weights.values()), x, ()), Activations.DYNAMIC)
    twins(written, (x,))
    stored = named_data(written.data).values()
    tables = {read(constant).int8().numpy().tobytes(): len(constant) for constant in stored if is_blob(constant)}
    for name, weight in weights.items():
        if name != "int8":
            assert tables[weight.int8().numpy().tobytes()] <= weight.nbytes + 56, name  # 40 of the header, 8 of each table
    assert len(tables) == len(weights) - 1
    assert weights["int8"].int8().numpy().tobytes() in stored


@pytest.mark.slow
def test_a_dynamic_layer_has_a_range_for_each_row(make_program: MakeProgram, random_table: RandomTable, twins: Twins) -> None:
    size = torch.logspace(-3, 3, 16)[:, None]
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)) * size
    written = write_file(EXPORTER, heads(make_program, [random_table((320, 64), 8)], x, ()), Activations.DYNAMIC)
    (found,), (simulated,) = twins(written, (x,)), written.lowered.simulate((x,))
    scale = simulated.abs().amax(1, keepdim=True)
    assert ((found - simulated).abs() / scale).max() < 0.01  # of each row, the smallest a millionth of the largest


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC])
def test_a_weight_with_two_readers_is_stored_once(programs: Programs, write: Write, twins: Twins, activations: Activations) -> None:
    written = write("shared", "executorch", activations)
    twins(written, programs("shared").golden.inputs)
    weight = programs("shared").weights["layer.weight"].int8().numpy().tobytes()
    dense = named_data(EXPORTER.dense(written.data))
    assert list(dense.values()).count(weight) == 1


@pytest.mark.slow
def test_batch_and_length_are_dynamic_up_to_their_bounds(write: Write) -> None:
    written = write("words", "executorch", Activations.DYNAMIC)
    for shape in ((1, 2), (64, 128)):
        tokens = torch.randint(100, shape, generator=torch.Generator().manual_seed(0))
        (found,), (simulated,) = EXPORTER.run(written.data, ((tokens,),))[0], written.lowered.simulate((tokens,))
        assert (found - simulated).abs().max() < 0.01 * simulated.abs().max()


def test_a_dimension_without_a_bound_is_refused_by_name(make_program: MakeProgram, random_table: RandomTable) -> None:
    weights = {"0.weight": random_table((64, 32), 8)}
    program = make_program(nn.Sequential(nn.Linear(32, 64)), (torch.randn(4, 32),), weights, (), ({0: Dim("batch", min=1)},))
    with pytest.raises(ExportError, match=r"dimension 0 has no upper bound.*max="):
        write_file(EXPORTER, program, Activations.DYNAMIC)
