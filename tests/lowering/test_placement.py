"""What is int8 and what is not, in small graphs; each is then run on both runtimes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from qn_deploy.errors import InputError
from qn_deploy.lowering.integer import inexact_operators
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.lowering.settle import is_quantized
from qn_deploy.program.program import Batch, Program
from qn_deploy.verification.numerics import compare
from qn_deploy.weights.compressed import IntWeight

aten, Q = torch.ops.aten, torch.ops.quantized_decomposed
MakeProgram = Callable[..., Program]
AssertExact = Callable[[Program, Batch], None]


def int8(model: nn.Module) -> dict[str, IntWeight]:
    """All its matrices and kernels as int8."""
    return {name: IntWeight.from_float(value) for name, value in model.named_parameters() if value.ndim > 1}


def reads_int8(program: Program, target: object) -> list[bool]:
    """For each call of an operator, whether all values that it computes with are int8."""
    nodes = [node for node in lower(program, Form(Activations.STATIC)).exported.graph.nodes if node.target is target]
    return [all(is_quantized(source) for source in sources(node)) for node in nodes]


def sources(node: Node) -> list[Node]:
    flat = torch.utils._pytree.tree_leaves(node.args[0] if node.target is aten.cat.default else node.args[:2])
    return [source for source in flat if isinstance(source, Node)]


def steps(program: Program, target: object) -> set[tuple[object, ...]]:
    """Scale and zero point of all that an operator reads and gives."""
    found = set()
    for node in lower(program, Form(Activations.STATIC)).exported.graph.nodes:
        if node.target is target:
            found |= {source.args[1:3] for source in sources(node)} | {user.args[1:3] for user in node.users}
    return found


class Streams(nn.Module):
    """A residual stream that a norm reads, and one that a layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out, self.norm = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4), nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x + self.two(x)
        return self.out(self.norm(x + self.two(x)))  # type: ignore[no-any-return]


def test_a_sum_is_int8_only_where_something_reads_it_so(make_program: MakeProgram) -> None:
    model = Streams()
    program = make_program(model, (torch.randn(8, 16),), int8(model))
    assert reads_int8(program, aten.add.Tensor) == [True, True]  # both terms of the last are int8 already, and stay what they are
    quantized = [{user.target for user in node.users} for node in lower(program, Form(Activations.STATIC)).exported.graph.nodes]
    assert {aten.layer_norm.default} in quantized  # but its result is a float


class Head(nn.Module):
    """Boxes in pixels and scores, side by side: one range would leave one value for all scores."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.box, self.score = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), nn.Conv2d(16, 8, 1)

    def forward(self, image: Tensor) -> Tensor:
        y = torch.relu(self.body(image))
        return torch.cat([320 * torch.sigmoid(self.box(y)).flatten(2), torch.sigmoid(self.score(y)).flatten(2)], 1)


def test_parts_of_very_different_ranges_that_are_returned_stay_apart(make_program: MakeProgram) -> None:
    model, image = Head(), torch.randn(4, 3, 8, 8)
    program = make_program(model, (image,), int8(model))
    assert reads_int8(program, aten.cat.default) == [False]
    (found,), (expected,) = lower(program, Form(Activations.STATIC)).simulate((image,)), program.golden.outputs
    for part in (slice(0, 4), slice(4, 12)):
        assert compare(found[:, part], expected[:, part]).sqnr_db > 30


class Joined(nn.Module):
    """Two layers side by side, the first also read elsewhere, and a layer that reads both."""

    def __init__(self, loudness: float) -> None:
        super().__init__()
        self.one, self.two, self.both, self.other = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.both = nn.Conv2d(16, 8, 1)
        self.two.weight.data.mul_(loudness)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one = self.one(x)
        return self.both(torch.cat([one, self.two(x)], 1)), self.other(one)


@pytest.mark.slow
@pytest.mark.parametrize(("loudness", "ranges"), [(1.0, 1), (50.0, 1)])
def test_parts_that_an_int8_layer_reads_have_its_range(
    make_program: MakeProgram, assert_exact: AssertExact, loudness: float, ranges: int
) -> None:
    model, x = Joined(loudness), (torch.randn(4, 8, 6, 6),)
    program = make_program(model, x, int8(model))
    assert reads_int8(program, aten.cat.default) == [True]
    assert len(steps(program, aten.cat.default)) == ranges
    small = next(node for node in lower(program, Form(Activations.STATIC)).exported.graph.nodes if node.target is aten.conv2d.default)
    grids = {user.args[1:3] for user in small.users}
    assert (grids == steps(program, aten.cat.default)) == (loudness == 1.0)  # else it keeps its own, which the other layer reads
    lowered = lower(program, Form(Activations.STATIC))
    assert all(compare(one, other).sqnr_db > 30 for one, other in zip(lowered.simulate(x), program.golden.outputs, strict=True))
    if not inexact_operators(lowered.exported):
        assert_exact(program, x)


class Excited(nn.Module):
    """Squeeze and excite, its mean written as users do."""

    def __init__(self, keepdim: bool, dims: tuple[int, int]) -> None:
        super().__init__()
        self.body, self.squeeze, self.last = nn.Conv2d(3, 16, 3), nn.Linear(16, 16), nn.Conv2d(16, 8, 1)
        self.keepdim, self.dims = keepdim, dims

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.body(image))
        mean = x.mean(self.dims, keepdim=self.keepdim)
        gate = torch.sigmoid(self.squeeze(mean.flatten(1)))
        return self.last(x * gate[:, :, None, None])  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(("keepdim", "dims"), [(True, (2, 3)), (False, (-1, -2))])
def test_a_mean_over_height_and_width_has_a_range_of_its_own_and_is_exact(
    make_program: MakeProgram, assert_exact: AssertExact, keepdim: bool, dims: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model, image = Excited(keepdim, dims), (torch.randn(16, 3, 6, 6),)
    assert_exact(make_program(model, image, int8(model)), image)


class Small(nn.Module):
    """Values far below 2**-12."""

    def __init__(self, loudness: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
        self.first.weight.data.mul_(loudness)
        self.last.weight.data.mul_(1 / loudness)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("loudness", [1e-4, 1e-9, 1e-14])
def test_scales_go_as_small_as_they_must(make_program: MakeProgram, assert_exact: AssertExact, loudness: float) -> None:
    torch.manual_seed(0)
    model, x = Small(loudness), (torch.randn(8, 64),)
    program = make_program(model, x, int8(model))
    assert compare(lower(program, Form(Activations.STATIC)).simulate(x)[0], program.golden.outputs[0]).sqnr_db > 30
    assert_exact(program, x)


@pytest.mark.slow
def test_a_signal_that_has_vanished_leaves_the_bias(make_program: MakeProgram, assert_exact: AssertExact) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(32, 32), (1e-42 * torch.randn(4, 16, 32),)
    program = make_program(model, x, int8(model))
    assert compare(lower(program, Form(Activations.STATIC)).simulate(x)[0], program.golden.outputs[0]).sqnr_db > 30
    assert_exact(program, x)


class Indexed(nn.Module):
    """Integer arithmetic whose result is an index."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.layer = nn.Embedding(16, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.positions(torch.arange(x.shape[1]) * 2 + 1))  # type: ignore[no-any-return]


def test_integers_stay_integers(make_program: MakeProgram) -> None:
    model, x = Indexed(), (torch.randn(4, 5, 8),)
    lowered = lower(make_program(model, x, {"layer.weight": IntWeight.from_float(model.layer.weight)}), Form(Activations.STATIC))
    assert all("int64" not in str(name) for name in inexact_operators(lowered.exported))
    torch.testing.assert_close(lowered.simulate(x)[0], model(*x), atol=0.05, rtol=0)


class Tail(nn.Module):
    """A float layer after int8 ones."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.body(image).relu(), 1).flatten(1))  # type: ignore[no-any-return]


def test_a_layer_that_the_recipe_left_float_is_not_exact(make_program: MakeProgram) -> None:
    model, image = Tail(), (torch.randn(4, 3, 8, 8),)
    program = make_program(model, image, {"body.weight": IntWeight.from_float(model.body.weight)})
    assert inexact_operators(lower(program, Form(Activations.STATIC)).exported) == ["linear"]


class Padded(nn.Module):
    """Pads that take away, add, and end the program."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(8, 16, 3, padding=4), nn.Conv1d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.two(torch.relu(F.pad(self.one(x), (2, -4)))), (1, 1))


@pytest.mark.slow
def test_pads_are_exact(make_program: MakeProgram, assert_exact: AssertExact) -> None:
    model, x = Padded(), (torch.randn(4, 8, 32),)
    assert_exact(make_program(model, x, int8(model)), x)


class Calls(nn.Module):
    """A parameter that has the name of an operator, and an input that has one of Python's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Parameter(torch.randn(8, 3, 1, 1))
        self.layer = nn.Conv2d(8, 8, 1)

    def forward(self, input: Tensor) -> Tensor:
        return self.layer(1000 * F.conv2d(input, self.conv2d))  # type: ignore[no-any-return]


def test_ranges_are_found_by_the_program_s_names(make_program: MakeProgram, assert_exact: AssertExact) -> None:
    model, image = Calls(), (torch.randn(4, 3, 8, 8),)
    program = make_program(model, image, int8(model))
    assert compare(lower(program, Form(Activations.STATIC)).simulate(image)[0], program.golden.outputs[0]).sqnr_db > 30


def test_a_value_without_a_range_is_named_with_the_way_out(make_program: MakeProgram) -> None:
    model, image = Tail(), (torch.randn(4, 3, 8, 8),)
    program = make_program(model, image, int8(model))
    ranges = {name: bounds for name, bounds in program.ranges.items() if name != "relu"}
    with pytest.raises(InputError, match=r"^relu has no range for static int8 activations; calibrate the program again with qn_"):
        lower(replace(program, ranges=ranges), Form(Activations.STATIC))


class Queries(nn.Module):
    """Learned queries that a layer reads, one set for each input, as in detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.layer, self.out = nn.Parameter(torch.randn(1, 3, 16) * 5), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        moved = self.queries.expand(x.shape[0], -1, -1).flatten(0, 1)
        scores: Tensor = self.out(self.layer(moved).unflatten(0, (-1, 3)) + x[:, None])
        return scores


def test_a_constant_that_is_moved_to_a_layer_has_its_own_range(make_program: MakeProgram, assert_exact: AssertExact) -> None:
    model, inputs = Queries(), (torch.randn(8, 16),)
    program = make_program(model, inputs, int8(model), dynamic_shapes=None)
    lowered = lower(program, Form(Activations.STATIC))
    layers = [node for node in lowered.exported.graph.nodes if node.target is aten.linear.default]
    assert [is_quantized(layer.args[0]) for layer in layers] == [True, True]
    assert compare(lowered.simulate(inputs)[0], model(*inputs)).sqnr_db > 35
    assert_exact(program, inputs)
