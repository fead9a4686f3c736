from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from qn_deploy.graph.lifted import constants, with_constants
from qn_deploy.graph.walk import Walk, outputs
from qn_deploy.program.capture import capture


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wide, self.last = nn.Conv2d(8, 8, 3, padding="same", groups=8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu6(self.norm(self.stem(x)), inplace=True)
        x = x + self.wide(x)
        return self.last(x.mean((2, 3))), x


class Text(nn.Module):
    """Integers, symbolic sizes, tuples of an LSTM, a value that is read much later."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(20, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, tokens: Tensor, scale: Tensor) -> Tensor:
        x = self.embed(tokens)
        places = torch.arange(tokens.shape[1]).expand(tokens.shape[0], -1)
        y = self.out(self.lstm(x + self.embed(places))[0])
        y = y + self.attention(y, x, x, need_weights=False)[0].view(tokens.shape[0], -1, 8)
        mixed: Tensor = torch.cat([y * scale, x], -1)
        return mixed


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(20, (count, 5), generator=torch.Generator().manual_seed(seed))


def an_image() -> tuple[ExportedProgram, list[tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    return capture(Image(), (random(2, 3, 8, 8),)).exported, [(random(size, 3, 8, 8, seed=size),) for size in (2, 5, 1)]


def a_text() -> tuple[ExportedProgram, list[tuple[Tensor, ...]]]:
    torch.manual_seed(0)
    program = capture(Text(), (tokens(2), torch.ones(1)))
    return program.exported, [(tokens(size, seed=size), random(1, seed=size)) for size in (2, 3)]


def node(exported: ExportedProgram, name: str) -> Node:
    return next(node for node in exported.graph.nodes if node.name == name)


def placeholder(exported: ExportedProgram, name: str) -> Node:
    return next(node for node, constant in constants(exported).items() if constant.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 2000, 1 << 30])
@pytest.mark.parametrize("make", [an_image, a_text])
def test_it_gives_the_programs_own_outputs(make: object, limit: int) -> None:
    exported, batches = make()  # type: ignore[operator]
    module = exported.module(check_guards=False)
    for found, batch in zip(outputs(exported, batches, limit), batches, strict=True):
        with torch.no_grad():
            expected = module(*batch)
        assert len(found) == len(expected)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_stops_change_nothing(limit: int) -> None:
    exported, batches = a_text()
    walk = Walk(exported, batches, limit)
    for stop in exported.graph.nodes:
        walk.until(stop)
    [last] = exported.graph.find_nodes(op="output")
    [value] = last.args[0]
    for (found, _), expected in zip(walk.values(value), outputs(exported, batches), strict=True):
        assert torch.equal(found, expected[0])


def test_both_sides_are_one_value_until_a_constant_is_replaced() -> None:
    exported, batches = an_image()
    walk = Walk(exported, batches)
    walk.until(node(exported, "conv2d_1"))
    for ours, theirs in walk.values(node(exported, "hardtanh")):
        assert ours is theirs
    weight = placeholder(exported, "wide.weight")
    other = random(8, 1, 3, 3)
    walk.replace(weight, other)
    [last] = exported.graph.find_nodes(op="output")
    walk.until(last)
    changed = with_constants(exported, {"wide.weight": other}).module(check_guards=False)
    for output, value in enumerate(last.args[0]):
        for index, (ours, theirs) in enumerate(walk.values(value)):
            with torch.no_grad():
                assert torch.equal(ours, changed(*batches[index])[output])
            assert torch.equal(theirs, outputs(exported, [batches[index]])[0][output])


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_spooled_or_not_a_replaced_constant_gives_the_same(limit: int) -> None:
    exported, batches = a_text()
    walk = Walk(exported, batches, limit)
    walk.replace(placeholder(exported, "embed.weight"), random(20, 8))
    for stop in exported.graph.nodes:
        walk.until(stop)
    changed = with_constants(exported, {"embed.weight": random(20, 8)}).module(check_guards=False)
    [value] = stop.args[0]
    for batch, (ours, theirs) in zip(batches, walk.values(value), strict=True):
        with torch.no_grad():
            assert torch.equal(ours, changed(*batch)[0])
        assert torch.equal(theirs, outputs(exported, [batch])[0][0])


@pytest.mark.slow
def test_values_that_nobody_reads_any_more_are_gone() -> None:
    exported, batches = an_image()
    seen: dict[tuple[str, int], weakref.ref[Tensor]] = {}

    def see(node: Node, value: object) -> None:
        gc.collect()
        alive = {name for (name, _), reference in seen.items() if reference() is not None}
        assert len(alive - {"add", "mean"}) <= 2, alive  # the operator's inputs; beside an output and what the next layer reads
        if isinstance(value, Tensor) and node.op == "call_function":
            seen[node.name, len(seen)] = weakref.ref(value)

    walk = Walk(exported, batches, see=see)
    walk.until(node(exported, "conv2d_1"))
    gc.collect()
    assert {name for (name, _), reference in seen.items() if reference() is not None} == {"hardtanh"}
    assert walk._spool.held == sum(8 * 8 * 8 * 4 * len(x) for (x,) in batches)
    walk.until(node(exported, "linear"))
    assert {group[0].name for group, _ in walk._spool._values} == {"mean", "add"}  # the input of the layer, and an output


def test_each_value_is_seen_once_for_each_batch() -> None:
    exported, batches = a_text()
    seen: list[str] = []
    outputs_of = Walk(exported, batches, see=lambda node, value: seen.append(node.name))
    [last] = exported.graph.find_nodes(op="output")
    outputs_of.until(last)
    held = {node.name for node in constants(exported)}
    moving = [node.name for node in exported.graph.nodes if node.op != "output" and node.name not in held]
    assert set(seen) == set(moving)
    assert {seen.count(name) for name in moving} <= {1, 2} and seen.count("tokens") == 2  # what no input reaches is computed once
