from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.narrow import narrow
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
X = (torch.randn(16, 32, generator=torch.Generator().manual_seed(0)),)


@pytest.mark.parametrize("name", ["table", "residual", "int8"])
def test_values_shrink_and_scales_grow(make_program: MakeProgram, random_table: RandomTable, name: str) -> None:
    first, second = random_table((48, 32), 4), random_table((48, 32), 4, seed=1)
    weight: CompressedWeight = {
        "table": first,
        "residual": replace(first, residual=replace(second, centroids=(second.centroids // 8), scale=first.scale)),
        "int8": IntWeight.from_float(torch.randn(48, 32)),
    }[name]
    program = make_program(nn.Sequential(nn.Linear(32, 48)), X, {"0.weight": weight})
    before = program.exported.state_dict["0.weight"].clone()
    small = narrow(program, 64).weights["0.weight"]
    assert 60 <= int(small.int8().abs().max()) <= 64
    step = small.scale[:, None]  # of the coarser grid
    unclamped = weight.int8().abs() < 127
    assert (((small.dequantize() - weight.dequantize()).abs() <= step) | ~unclamped).all()
    assert torch.equal(program.exported.state_dict["0.weight"], before)
    assert torch.equal(narrow(program, 64).exported.state_dict["0.weight"], small.dequantize())


def test_weights_that_are_narrow_already_stay(make_program: MakeProgram, random_table: RandomTable) -> None:
    table = random_table((48, 32), 4)
    program = make_program(nn.Sequential(nn.Linear(32, 48)), X, {"0.weight": table})
    assert narrow(program, 127).weights["0.weight"] is table


def test_inputs_keep_their_names(make_program: MakeProgram, random_table: RandomTable) -> None:
    """A copy of the graph would call this one input_1, and the signature input: `input` is a builtin of Python."""
    weight = random_table((8, 16), 4)
    program = make_program(nn.Sequential(nn.Linear(16, 8)), (torch.randn(2, 16),), {"0.weight": weight}, ())
    narrowed = narrow(program, 63)
    assert narrowed.exported.graph_signature.user_inputs == ("input",)
    assert "input" in {node.name for node in narrowed.exported.graph.nodes}
    assert torch.equal(narrowed.exported.state_dict["0.weight"], narrowed.weights["0.weight"].dequantize())
    assert torch.equal(program.exported.state_dict["0.weight"], weight.dequantize())


def test_a_narrow_file_needs_no_session_option_and_agrees_with_its_simulation(make_program: MakeProgram, random_table: RandomTable) -> None:
    program = make_program(nn.Sequential(nn.Linear(32, 48)), X, {"0.weight": random_table((48, 32), 4)})
    written = write_file(EXPORTER, narrow(program, 64), Activations.STATIC)
    assert written.facts == {"opset": "21"}
    step = next(node for node in written.lowered.exported.graph.nodes if node.op == "output").args[0][0].args[1]
    (found,), (expected,) = EXPORTER.run(written.data, (X,))[0], written.lowered.simulate(X)
    assert ((found - expected) / step).abs().max() < 1.001
