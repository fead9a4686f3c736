from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torch.nn.utils.parametrizations import spectral_norm

from qn_deploy.graph.constants import owner_of
from qn_deploy.graph.lifted import unlifted
from qn_deploy.graph.sites import weights
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def captured(model: nn.Module, x: Tensor = X) -> Program:
    program = capture(model, (x,))
    torch.testing.assert_close(unlifted(program.exported)(x)[0], model.eval()(x), rtol=1e-5, atol=1e-6)
    return program


def names(program: Program) -> list[str]:
    return [weight.name for weight in weights(program.exported)]


def operators(program: Program) -> list[str]:
    return [str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"]


NORMALISED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm, old": lambda: weight_norm(nn.Linear(6, 4)),
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(6, 4)),
    "spectral_norm": lambda: spectral_norm(nn.Linear(6, 4)),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("kind", NORMALISED)
def test_a_normalised_weight_is_the_weight_of_its_layer(kind: str) -> None:
    torch.manual_seed(0)
    program = captured(nn.Sequential(NORMALISED[kind](), nn.ReLU()))
    assert names(program) == ["0.weight"] and operators(program) == ["aten.linear.default", "aten.relu.default"]
    assert set(program.exported.state_dict) == {"0.weight", "0.bias"}
    assert "Linear" in program.classes["0.weight"]


class Own(nn.Module):
    """Parameters that a forward makes a weight of."""

    def __init__(self, weight: Callable[[nn.Module], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 6))
        self.gain = nn.Parameter(torch.rand(4, 1))
        self.make = weight

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.make(self))


@pytest.mark.parametrize(
    ("make", "name"),
    [(lambda m: m.w / m.w.norm(), "w"), (lambda m: m.gain * m.w, "weight"), (lambda m: m.w.view(2, 12).view(4, 6), "w")],
    ids=["one parameter", "two parameters", "views"],
)
def test_a_weight_computed_in_the_forward_is_one_constant(make: Callable[[nn.Module], Tensor], name: str) -> None:
    torch.manual_seed(0)
    program = captured(Own(make))
    assert names(program) == [name] and operators(program) == ["aten.linear.default"]


class Packed(nn.Module):
    """One parameter holds the weights of three layers, as attention packs them."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(12, 6))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (nn.functional.linear(x, part) for part in self.packed.chunk(3))
        return q * k + v


def test_views_of_a_packed_parameter_become_weights_of_their_own() -> None:
    torch.manual_seed(0)
    program = captured(Packed())
    found = names(program)
    assert len(set(found)) == 3 and all(name.startswith("packed") for name in found)
    assert sum(value.numel() for value in program.exported.state_dict.values()) == 72


class Positions(nn.Module):
    """Constants that nothing but their size makes: a mask of every pair of 400 positions from a vector of 400."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.rand(400))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.place[:, None] - self.place).sum(0)[:6] + torch.arange(6.0)


def test_a_constant_is_not_stored_where_it_is_much_larger_than_what_it_is_made_of() -> None:
    program = captured(Positions())
    assert sum(value.numel() for value in program.exported.state_dict.values()) < 1 << 16


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.w + 0 * torch.rand_like(self.w)


def test_what_is_drawn_anew_in_each_run_is_no_constant() -> None:
    assert any("rand" in name for name in operators(captured(Draws())))


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 4), nn.Linear(6, 400)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.used(x)
        return scores


def test_unused_parameters_are_gone() -> None:
    assert set(captured(Unused()).exported.state_dict) == {"used.weight", "used.bias"}


@given(st.lists(st.sampled_from(["layer", "0", "w"]), max_size=3), st.sampled_from(["weight", "0", "original"]))
@settings(max_examples=30, deadline=None)
def test_the_owner_is_what_comes_before_the_last_dot_and_a_parametrizations_is_the_module(path: list[str], leaf: str) -> None:
    owner = ".".join(path)
    assert owner_of(f"{owner}.parametrizations.weight.original0".lstrip(".")) == owner
    if leaf != "original" and "original" not in owner:
        assert owner_of(f"{owner}.{leaf}".lstrip(".")) == owner
