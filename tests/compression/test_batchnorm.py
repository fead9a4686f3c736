from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression.batchnorm import fold_batchnorm
from qn_deploy.errors import CompressionError

IMAGES = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module) -> nn.Module:
    """Eval mode, with BatchNorm statistics and gains unlike those at the start, some negative."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            if module.weight is not None:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def folded(model: nn.Module, x: Tensor = IMAGES) -> list[str]:
    """Names of what was folded; the outputs must not have changed."""
    model = trained(model)
    before = copy.deepcopy(model)
    names = fold_batchnorm(model, (x,))
    torch.testing.assert_close(model(x), before(x), rtol=1e-5, atol=1e-5)
    for name in names:
        assert isinstance(model.get_submodule(name), nn.Identity)
    return names


class Residual(nn.Module):
    """Two pairs and a shortcut, written with the modules out of order."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2, self.norm1 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return x + y


class Twice(nn.Module):
    """One convolution, called from two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)) + self.conv(x)
        return y


class ReadTwice(nn.Module):
    """The convolution's output is read by another operator as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z: Tensor = self.norm(y) + y
        return z


class NormThenRelu(nn.BatchNorm2d):
    """A subclass that does more than normalise."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    model[2].weight = model[0].weight
    return model


def test_pairs_are_folded_wherever_the_modules_stand() -> None:
    assert folded(Residual()) == ["norm1", "norm2"]


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, bias=False), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 8, 3, padding_mode="circular")]
)
@pytest.mark.parametrize("affine", [True, False])
def test_convolutions(layer: nn.Module, affine: bool) -> None:
    model = nn.Sequential(copy.deepcopy(layer), nn.BatchNorm2d(8, affine=affine), nn.ReLU())
    assert folded(model) == ["1"]
    assert isinstance(model[0].bias, nn.Parameter)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 8, 3, groups=2),
        nn.ConvTranspose1d(4, 8, 3, bias=False),
        nn.ConvTranspose2d(4, 8, 3, groups=2),
    ],
)
def test_other_convolutions(layer: nn.Module) -> None:
    two = isinstance(layer, nn.ConvTranspose2d)
    norm = nn.BatchNorm2d(8) if two else nn.BatchNorm1d(8)
    assert folded(nn.Sequential(copy.deepcopy(layer), norm), IMAGES if two else IMAGES[..., 0]) == ["1"]


def test_linear_with_features_in_dimension_1() -> None:
    assert folded(nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)), torch.randn(3, 6)) == ["1"]


@pytest.mark.parametrize(
    "model",
    [
        Twice(),
        ReadTwice(),
        tied(),
        nn.Sequential(nn.Conv2d(4, 8, 3), NormThenRelu(8)),
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)),
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Flatten(2), nn.Linear(36, 5), nn.BatchNorm1d(4)),  # normalises dimension 1, which is not the Linear's
    ],
    ids=["twice", "read-twice", "tied", "subclass", "batch-statistics", "before", "after-relu", "other-dimension"],
)
def test_what_can_not_be_folded_is_left_alone(model: nn.Module) -> None:
    assert folded(model) == []


def test_a_model_that_can_not_be_captured_is_refused_by_name() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) if float(x.sum()) > 0 else x

    with pytest.raises(CompressionError, match="can't capture Branches"):
        fold_batchnorm(Branches().eval(), (IMAGES,))
