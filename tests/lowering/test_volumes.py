"""Operators of three dimensions become such of two: the values stay, both runtimes run them, and in int8 bit for bit as the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import compress
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Batch, Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table
from qn_deploy.weights.compressed import PQWeight

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv3d(4, 6, 3),
    "strided": lambda: nn.Conv3d(4, 6, (3, 2, 1), stride=(2, 1, 2), padding=(1, 0, 2), dilation=(2, 1, 1)),
    "groups": lambda: nn.Conv3d(4, 6, 3, groups=2, padding="same", bias=False),
    "one deep": lambda: nn.Conv3d(4, 6, (1, 3, 3)),
    "clamped": lambda: nn.Sequential(nn.Conv3d(4, 6, 3), nn.ReLU6()),
    "max": lambda: nn.MaxPool3d(2),
    "max overlapping": lambda: nn.MaxPool3d(3, stride=2, padding=1),
    "average": lambda: nn.AvgPool3d((2, 3, 2), padding=(1, 0, 1)),
    "global": lambda: nn.AdaptiveAvgPool3d(1),
}


def program_of(model: nn.Module) -> Program:
    torch.manual_seed(0)
    return capture(model.eval(), (torch.randn(3, 4, 7, 8, 9),))


@pytest.mark.parametrize("name", LAYERS)
def test_values_stay_and_no_operator_of_three_dimensions_is_left(name: str) -> None:
    program = program_of(LAYERS[name]())
    lowered = lower(program, Form(Activations.NONE))
    assert not [node.name for node in lowered.exported.graph.nodes if "3d" in str(node.target)]
    (found,), (expected,) = lowered.simulate(program.golden.inputs), program.golden.outputs
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    one = lowered.simulate((program.golden.inputs[0][:1],))[0]  # the batch is dynamic still
    torch.testing.assert_close(one, expected[:1], atol=1e-5, rtol=1e-5)


def test_an_average_that_leaves_padding_out_stays() -> None:
    lowered = lower(program_of(nn.AvgPool3d(2, padding=1, count_include_pad=False)), Form(Activations.NONE))
    assert [node for node in lowered.exported.graph.nodes if node.target is torch.ops.aten.avg_pool3d.default]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(8, 16, 3, stride=(2, 1, 1)))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3, 4)))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_a_net_of_volumes_keeps_its_tables_and_is_exact_in_int8(assert_exact: Callable[[Program, Batch], None]) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(4, 1, 8, 10, 10),)]
    program = compress(Net().eval(), Recipe((Rule(Table(9, 16), module="Conv3d"), Rule(Int8()))), batches)
    assert isinstance(program.weights["body.3.weight"], PQWeight)
    assert_exact(program, batches[0])
    for exporter in find_exporters().values():
        assert not write_file(exporter, program, Activations.STATIC).dense
