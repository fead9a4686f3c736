from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import ALL, Grid
from qn_deploy.lowering.settle import computes_int8, is_settled, range_behind, settle
from qn_deploy.program.program import Program

Q = torch.ops.quantized_decomposed
STEPS = torch.arange(-128, 128, dtype=torch.int8)
PAIRS = STEPS[:, None].expand(256, 256), STEPS[None, :].expand(256, 256)


def pair(x: Tensor, scale: float) -> Tensor:
    steps = Q.quantize_per_tensor(x, scale, 0, -128, 127, torch.int8)
    result: Tensor = Q.dequantize_per_tensor(steps, scale, 0, -128, 127, torch.int8)
    return result


class Sum(nn.Module):
    """Two quantized inputs, their sum quantized with a scale at which many pairs are ties, and moved on with the same range."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = (pair(x, 0.5) for x in (a, b))
        y = pair(torch.relu(a + b), 1.0)
        return pair(y.reshape(-1), 1.0)


def disagreeing(out: float) -> int:
    grids = Grid(torch.tensor(0.5), 0), Grid(torch.tensor(0.5), 0), Grid(torch.tensor(out), 0)
    first, *others = (rules.add(*PAIRS, *grids).clamp(0, 127) for rules in ALL)
    return max(int((first != other).sum()) for other in others)


def test_an_output_scale_is_enlarged_until_no_pair_of_inputs_is_left_to_the_runtime() -> None:
    assert disagreeing(1.0) > 1000  # half steps: a tie every second time, rounded up by one and to even by the other
    graph = torch.export.export(Sum(), (torch.randn(4), torch.randn(4))).graph_module.graph
    settle(graph)
    scales = [node.args[1] for node in graph.nodes if node.target in (Q.quantize_per_tensor.default, Q.dequantize_per_tensor.default)]
    assert scales[:4] == [0.5] * 4  # the inputs keep theirs
    (settled,) = set(scales[4:])  # and what moves the sum on shares its new range
    assert 1.0 < settled < 1.02
    assert disagreeing(settled) == 0


class Between(nn.Module):
    """An operator between two ranges at which some of its results are ties."""

    def __init__(self, operator: Callable[[Tensor], Tensor], scale: float) -> None:
        super().__init__()
        self.operator, self.scale = operator, scale

    def forward(self, x: Tensor) -> Tensor:
        return pair(self.operator(pair(x, 0.5)), self.scale)


OPERATORS: list[tuple[Callable[[Tensor], Tensor], float]] = [
    (lambda x: x * x, 2.0),
    (lambda x: torch.relu(x * x), 2.0),
    (F.leaky_relu, 0.25),
    (F.hardswish, 0.25),
    (F.hardsigmoid, 1.0),
]


@pytest.mark.parametrize(("operator", "scale"), OPERATORS)
def test_products_and_activations_are_settled_too(operator: Callable[[Tensor], Tensor], scale: float) -> None:
    graph = torch.export.export(Between(operator, scale), (torch.randn(4),)).graph_module.graph
    (node,) = [node for node in graph.nodes if computes_int8(node)]
    assert not is_settled(node)
    settle(graph)
    assert is_settled(node)


class Shared(nn.Module):
    """Two products of one range: at the scale that settles the first the second has ties, and the next one unsettles the first."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = pair(x, 0.807), pair(x, 0.5532)
        return pair(a * a, 17.773) + pair(b * b, 17.773)


def test_what_shares_a_range_is_settled_together() -> None:
    graph = torch.export.export(Shared(), (torch.randn(4),)).graph_module.graph
    settle(graph)
    assert [is_settled(node) for node in graph.nodes if computes_int8(node) and range_behind(node)] == [True, True]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        return torch.relu(x + self.two(x))


@pytest.mark.slow
def test_runtimes_are_bit_identical_on_residual_networks(make_program: Callable[..., Program]) -> None:
    from qn_deploy.weights.compressed import IntWeight

    for seed in range(3):
        torch.manual_seed(seed)
        model = Residual()
        model.one.bias.data.mul_(100)  # large biases, whose rounding by division and by reciprocal would differ
        x = (torch.randn(16, 8, 16, 16),)
        weights = {name: IntWeight.from_float(model.get_parameter(name)) for name in ("one.weight", "two.weight")}
        program = make_program(model, x, weights)
        one, other = (
            exporter.run(write_file(exporter, program, Activations.STATIC).data, (x,))[0][0] for exporter in find_exporters().values()
        )
        assert torch.equal(one, other)
