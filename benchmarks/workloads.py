"""What is measured on both runtimes: networks, their inputs and recipes, with random tables where a recipe pays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from models import Encoder, MobileNet, ResNet50
from torch import Tensor, nn

from qn_deploy.compression.calibrate import calibrate
from qn_deploy.compression.targets import targets
from qn_deploy.graph.lifted import with_constants
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Method, Recipe, Rule, Table
from qn_deploy.recipe.paper import resnet, transformer
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight, codes_dtype

STATIC, DYNAMIC = Activations.STATIC, Activations.DYNAMIC
LINEAR = Recipe((Rule(Table(8, 256)),), title="d=8")
CONV = Recipe((Rule(Table(9, 256)),), title="d=9")


@dataclass(frozen=True)
class Workload:
    """A network, what it reads, and how it is compressed."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    activations: Activations
    recipe: Recipe


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(1024, 4096))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(256, 256, 3, padding=1))


def stack() -> nn.Module:
    """12 layers of 2048 x 2048: what loads while others are loaded."""
    return nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(12)))


WORKLOADS = {
    "Linear 1024x4096, static, batch 1": Workload(linear, lambda: torch.randn(1, 1024), STATIC, LINEAR),
    "Linear 1024x4096, static, batch 128": Workload(linear, lambda: torch.randn(128, 1024), STATIC, LINEAR),
    "Linear 1024x4096, dynamic, batch 1": Workload(linear, lambda: torch.randn(1, 1024), DYNAMIC, LINEAR),
    "Linear 1024x4096, dynamic, batch 128": Workload(linear, lambda: torch.randn(128, 1024), DYNAMIC, LINEAR),
    "Conv 3x3 256": Workload(conv, lambda: torch.randn(1, 256, 28, 28), STATIC, CONV),
    "ResNet-50": Workload(ResNet50, lambda: torch.randn(1, 3, 224, 224), STATIC, resnet()),
    "MobileNet": Workload(MobileNet, lambda: torch.randn(1, 3, 224, 224), STATIC, resnet()),
    "6-layer encoder, dynamic": Workload(Encoder, lambda: torch.randn(1, 128, 384), DYNAMIC, transformer()),
    "6-layer encoder, static": Workload(Encoder, lambda: torch.randn(1, 128, 384), STATIC, transformer()),
}


def random_program(model: nn.Module, x: Tensor, recipe: Recipe, activations: Activations) -> Program:
    """The model with random tables where the recipe pays: times and bytes do not depend on the values."""
    program = capture(model, (x,), dynamic_shapes=())
    weights = {target.name: _random(target.weight.value, target.method, target.per_channel) for target in targets(program, recipe)[0]}
    values = {name: weight.dequantize() for name, weight in weights.items()}
    program = replace(program, exported=with_constants(program.exported, values), weights=weights)
    return calibrate(program, [(x,)]) if activations is STATIC else program


def _random(weight: Tensor, method: Method, per_row: bool) -> CompressedWeight:
    out, row = weight.shape[0], weight[0].numel()
    if not isinstance(method, Table) or row % method.block_size or not method.pays(out, row):
        return IntWeight.from_float(weight, per_row)
    columns = row // method.block_size
    books = method.books(out, columns)
    size = min(method.centroids, out * columns // books)
    codes = torch.randint(size, (out, columns)).to(codes_dtype(size))
    centroids = torch.randn(books, size, method.block_size).mul(40).round().clamp(-127, 127).to(torch.int8)
    scale = (torch.rand(out if per_row else 1) + 0.5) / (40 * prod(weight.shape[1:]) ** 0.5)
    return PQWeight(codes, centroids, scale, tuple(weight.shape))
