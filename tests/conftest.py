"""Small programs that the tests share. Each is captured once, and written once for each runtime and activation scheme."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import prod

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qn_deploy.compression import calibrate
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written, find_exporters
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight, codes_dtype

F = nn.functional
torch.set_num_threads(1)


def random_table(shape: tuple[int, ...], block: int, size: int = 16, books: int = 1, per_row: bool = True, seed: int = 0) -> PQWeight:
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(size, (shape[0], prod(shape[1:]) // block), generator=draw).to(codes_dtype(size))
    centroids = torch.randint(-127, 128, (books, size, block), generator=draw, dtype=torch.int8)
    fan_in = prod(shape[1:])
    scale = (torch.rand(shape[0] if per_row else 1, generator=draw) + 0.5) / (64 * fan_in**0.5)
    return PQWeight(codes, centroids, scale, shape)


def make_program(
    module: nn.Module,
    inputs: Batch,
    weights: dict[str, CompressedWeight],
    batches: tuple[Batch, ...] | None = None,
    dynamic_shapes: object = (),
) -> Program:
    """A program of `module` with these weights in it, calibrated with its example inputs if nothing else is given; () for no ranges."""
    with torch.no_grad():
        for name, weight in weights.items():
            module.get_parameter(name).copy_(weight.dequantize())
    program = capture(module, inputs, dynamic_shapes=dynamic_shapes)
    program.weights.update({name: weight for name, weight in weights.items() if name in program.classes})  # a tied one has one name
    batches = (inputs,) if batches is None else batches
    return calibrate(program, batches) if batches else program


class Operators(nn.Module):
    """One output for each operator that has an exact integer rule."""

    def __init__(self) -> None:
        super().__init__()
        self.strided = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(16, 32, 1, groups=2, bias=False)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.linear = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        strided = self.strided(x).relu_()
        grouped = self.grouped(strided)
        depthwise = F.relu(self.depthwise(grouped))
        mean = F.adaptive_avg_pool2d(depthwise, 1).flatten(1)
        return strided, grouped, depthwise, mean, self.linear(mean)


class Residual(nn.Module):
    """A convolutional network in small: a fork, an addition, a mean, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 1)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.second(F.relu(self.first(x))))
        scores: Tensor = self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return scores


class Words(nn.Module):
    """A Transformer's feed-forward layer over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32, bias=False)
        self.out = nn.Linear(32, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(F.relu(self.up(x)))
        scores: Tensor = self.out(x.mean(1))
        return scores


class Tied(nn.Module):
    """A language model's ends: the output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 32)
        self.out = nn.Linear(32, 64)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.out(self.embed(tokens))
        return scores


class Shared(nn.Module):
    """One layer called twice, as in networks that share layers, and another that shares its weight but not its bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.other = nn.Linear(16, 16)
        self.other.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.other(self.layer(self.layer(x).relu()))
        return scores


def operators() -> Program:
    module = Operators()
    weights: dict[str, CompressedWeight] = {
        "strided.weight": random_table((16, 8, 3, 3), block=9),
        "grouped.weight": random_table((32, 8, 1, 1), block=4, books=2),
        "depthwise.weight": IntWeight.from_float(module.depthwise.weight),
        "linear.weight": random_table((10, 32), block=8),
    }
    return make_program(module, (torch.randn(32, 8, 9, 9),), weights)


def residual() -> Program:
    module = Residual()
    weights: dict[str, CompressedWeight] = {
        "stem.weight": IntWeight.from_float(module.stem.weight),
        "first.weight": random_table((16, 16, 3, 3), block=9),
        "second.weight": random_table((16, 16, 1, 1), block=4, books=4),
        "classifier.weight": random_table((10, 16), block=4),
    }
    images = torch.randn(8, 3, 12, 12)
    return make_program(module, (images[:3],), weights, ((images,),), ({0: Dim("batch", min=1, max=64)},))


def words() -> Program:
    module = Words()
    weights: dict[str, CompressedWeight] = {
        "embed.weight": random_table((100, 32), block=8, books=2, per_row=False),
        "up.weight": random_table((64, 32), block=8),
        "down.weight": random_table((32, 64), block=4, books=4),
        "out.weight": IntWeight.from_float(module.out.weight),
    }
    tokens = torch.randint(100, (2, 10))
    return make_program(module, (tokens,), weights, (), ({0: Dim("batch", min=1, max=64), 1: Dim("length", min=2, max=128)},))


def tied() -> Program:
    table = random_table((64, 32), block=8, per_row=False)
    return make_program(Tied(), (torch.randint(64, (2, 5)),), {"embed.weight": table, "out.weight": table}, ())


def shared() -> Program:
    table = random_table((16, 16), block=4, books=2)
    return make_program(Shared(), (torch.randn(64, 16),), {"layer.weight": table, "other.weight": table})


PROGRAMS = {maker.__name__: maker for maker in (operators, residual, words, tied, shared)}
Programs = Callable[[str], Program]
Write = Callable[[str, str, Activations], Written]


@pytest.fixture(scope="session")
def programs() -> Programs:
    """The program of a name in PROGRAMS."""

    def make(name: str) -> Program:
        torch.manual_seed(0)
        return PROGRAMS[name]()

    return cache(make)


@pytest.fixture(scope="session")
def write(programs: Programs) -> Write:
    """write(program's name, exporter's name, activations): what the exporter made of the program."""
    exporters = find_exporters()
    return cache(lambda name, exporter, activations: write_file(exporters[exporter], programs(name), activations))


@pytest.fixture(scope="session", name="make_program")
def make_program_fixture() -> Callable[..., Program]:
    return make_program


@pytest.fixture(scope="session", name="random_table")
def random_table_fixture() -> Callable[..., PQWeight]:
    return random_table
