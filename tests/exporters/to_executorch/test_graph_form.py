from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qn_deploy.errors import ExportError
from qn_deploy.exporters.to_executorch import EXPORTER, graph_form
from qn_deploy.exporters.to_executorch.options import ExecutorchOptions
from qn_deploy.exporters.to_executorch.pte import backends, constants, named_data
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import IntWeight, PQWeight
from qn_deploy.weights.packing import code_rows

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
GRAPH = ExecutorchOptions(form="graph")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["operators", "words", "tied", "shared"])
def test_it_computes_what_the_float_program_does(programs: Programs, name: str) -> None:
    program = programs(name)
    written = write_file(EXPORTER, program, Activations.NONE, GRAPH)
    x = program.golden.inputs
    for found, simulated in zip(EXPORTER.run(written.data, (x,))[0], written.lowered.simulate(x), strict=True):
        torch.testing.assert_close(found, simulated, rtol=1e-4, atol=1e-5)
    assert backends(written.data) <= {"XnnpackBackend"}
    assert not written.companions


@pytest.mark.slow
def test_rows_are_looked_up_some_at_a_time_and_stay_codes(
    make_program: MakeProgram, random_table: RandomTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_form, "AT_A_TIME", 32 * 128)
    first = random_table((100, 64), 8, 16, books=2, seed=1)
    weights = {
        "0.weight": PQWeight(first.codes, first.centroids, first.scale, first.shape, residual=first),
        "1.weight": random_table((70, 100), 4, 300, books=5, per_row=False),
        "3.weight": IntWeight.from_float(torch.randn(33, 70)),
    }

    model = nn.Sequential(nn.Linear(64, 100), nn.Linear(100, 70, bias=False), nn.ReLU(), nn.Linear(70, 33))
    x = (torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)),)
    batch = torch.export.Dim("batch", min=1, max=8)
    written = write_file(EXPORTER, make_program(model, x, weights, (), ({0: batch},)), Activations.NONE, GRAPH)
    for inputs in (x, (torch.randn(8, 3, 64),)):
        torch.testing.assert_close(EXPORTER.run(written.data, (inputs,))[0][0], written.lowered.simulate(inputs)[0], rtol=1e-4, atol=1e-4)
    held = constants(written.data)
    for weight in weights.values():
        parts = (weight.int8(),) if isinstance(weight, IntWeight) else (code_rows(weight), weight.centroids)
        assert all(part.numpy().tobytes() in held for part in parts)
    assert sum(map(len, named_data(written.data).values())) < 1000  # nothing of a weight's size is packed into a delegate


@pytest.mark.slow
def test_what_xnnpack_leaves_is_told(programs: Programs) -> None:
    notes = write_file(EXPORTER, programs("operators"), Activations.NONE, GRAPH).notes
    assert notes[0] == "strided.weight is looked up as a whole at every run: XNNPACK takes no computed weight for conv2d"
    assert "3 convolution" in notes[-1]


@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC])
def test_int8_activations_are_refused(programs: Programs, activations: Activations) -> None:
    with pytest.raises(ExportError, match=rf"multiplies these in float only; export with --activations none \(found {activations.value}\)"):
        write_file(EXPORTER, programs("shared"), activations, GRAPH)
