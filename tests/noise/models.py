"""Networks with one weight of each kind, and what the tests of noise look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qn_deploy import noise
from qn_deploy.noise.functions import Noise
from qn_deploy.recipe import Int8, Recipe, Rule, Table

torch.set_num_threads(1)

TABLES = Recipe((Rule(Table(4, 2)),))
INT8 = Recipe((Rule(Int8()),))


class Net(nn.Module):
    """One of each: 3x3, 1x1 and depthwise convolutions, a classifier without bias, an embedding that is tied to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(10, 8)
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.token.weight

    def forward(self, image: Tensor, token: Tensor) -> Tensor:
        pixels = self.depth(self.point(self.norm(self.conv(image)).relu())).mean((2, 3))
        out: Tensor = self.head(pixels + self.token(token))
        return out


def a_batch() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 7, 7, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 3, 3, 9])


def a_net() -> Net:
    torch.manual_seed(0)
    return Net()


def seen(module: nn.Module) -> Tensor:
    """The weight that a forward pass sees."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def original(module: nn.Module) -> nn.Parameter:
    """The clean weight behind the noise."""
    return module.get_parameter("parametrizations.weight.original")


def noises(module: nn.Module) -> list[Noise]:
    """What distorts the weight, in order."""
    attached = module.get_submodule("parametrizations.weight.0")
    assert isinstance(attached, noise.QuantNoise)
    return attached.sequence()


def gradient(module: nn.Module) -> Tensor:
    grad = original(module).grad
    assert grad is not None
    return grad


def bits(model: nn.Module) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]
