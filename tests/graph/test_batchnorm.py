from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program

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


def folded(model: nn.Module, x: Tensor = IMAGES) -> Program:
    """The captured model, without a batch_norm in it; the outputs must not have changed."""
    model = trained(model)
    program = capture(model, (x,))
    torch.testing.assert_close(unlifted(program.exported)(x)[0], model(x), rtol=1e-5, atol=1e-5)
    assert "aten.batch_norm.default" not in operators(program)
    return program


def operators(program: Program) -> list[str]:
    return [str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"]


def affine(program: Program) -> int:
    """How many norms stayed as a product and a sum with constants."""
    names = program.exported.graph_signature.inputs_to_parameters.values()
    found = sum(name.rpartition(".")[2].startswith("factor") for name in names)
    assert found == sum(name.rpartition(".")[2].startswith("offset") for name in names)
    return found


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
    program = folded(Residual())
    assert affine(program) == 0 and sum("conv2d" in name for name in operators(program)) == 2
    assert set(program.exported.state_dict) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, bias=False), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(4, 8, 3, padding_mode="circular")]
)
@pytest.mark.parametrize("affine_norm", [True, False])
def test_convolutions(layer: nn.Module, affine_norm: bool) -> None:
    program = folded(nn.Sequential(copy.deepcopy(layer), nn.BatchNorm2d(8, affine=affine_norm), nn.ReLU()))
    assert affine(program) == 0 and set(program.exported.state_dict) == {"0.weight", "0.bias"}


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
    assert affine(folded(nn.Sequential(copy.deepcopy(layer), norm), IMAGES if two else IMAGES[..., 0])) == 0


def test_convolutions_of_volumes() -> None:
    assert affine(folded(nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4)), torch.randn(2, 2, 3, 3, 3))) == 0


def test_linear_with_features_in_dimension_1() -> None:
    assert affine(folded(nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)), torch.randn(3, 6))) == 0


@pytest.mark.parametrize("norm", [nn.SyncBatchNorm(8), NormThenRelu(8)], ids=lambda norm: type(norm).__name__)
def test_the_operator_decides_and_not_the_class(norm: nn.Module) -> None:
    assert affine(folded(nn.Sequential(nn.Conv2d(4, 8, 3), copy.deepcopy(norm)))) == 0


class Causal(nn.Module):
    """The end of a padded convolution is cut off before the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 6, 3, padding=2), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)[:, :, :-2])
        return y


class Channels(Causal):
    """Some channels are cut off before the norm: its factors are not those of the convolution's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(x)[:, 2:])
        return y


def test_a_slice_in_time_is_no_obstacle_and_one_of_channels_is() -> None:
    assert affine(folded(Causal(), IMAGES[..., 0])) == 0
    assert affine(folded(Channels(), IMAGES[..., 0])) == 1


class TwoNorms(nn.Module):
    """One convolution meets two norms, as heads that share weights over levels of a pyramid do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(4, 4, 1), nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x: Tensor) -> Tensor:
        y, z, again = self.norms[0](self.conv(x)), self.norms[1](self.conv(x + 1)), self.norms[0](self.conv(x - 1))
        return y * z + again


def test_each_call_of_a_shared_convolution_has_the_weight_of_its_norm() -> None:
    program = folded(TwoNorms())
    assert affine(program) == 0
    kernels = [node.args[1] for node in program.exported.graph.nodes if "conv2d" in str(node.target)]
    assert len(set(kernels)) == 2 and kernels[0] is kernels[2]


@pytest.mark.parametrize("model", [Twice(), tied()], ids=["twice", "tied"])
def test_a_weight_that_is_read_elsewhere_too_stays_as_it_is_there(model: nn.Module) -> None:
    program = folded(model)
    kernels = [node.args[1] for node in program.exported.graph.nodes if "conv2d" in str(node.target)]
    assert affine(program) == 0 and len(set(kernels)) == 2


@pytest.mark.parametrize(
    "model",
    [
        ReadTwice(),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3)),
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)),
        nn.Sequential(nn.Flatten(2), nn.Linear(36, 5), nn.BatchNorm1d(4)),  # normalises dimension 1, which is not the Linear's
    ],
    ids=["read-twice", "before", "after-relu", "other-dimension"],
)
def test_what_can_not_be_folded_becomes_a_product_and_a_sum(model: nn.Module) -> None:
    assert affine(folded(model)) == 1


def test_a_norm_by_the_statistics_of_the_batch_is_written_out() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)))
    program = capture(model, (IMAGES,))
    assert (
        affine(program) == 0
        and not any("norm" in name for name in operators(program))
        and any("rsqrt" in name for name in operators(program))
    )
    torch.testing.assert_close(unlifted(program.exported)(IMAGES)[0], model(IMAGES), rtol=1e-5, atol=1e-5)
