from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qn_deploy.graph.lifted import unlifted
from qn_deploy.graph.sites import weights
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program


class Product(nn.Module):
    """A product with a parameter [in, out] and a bias."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor], inside: int = 6, out: int = 4) -> None:
        super().__init__()
        self.weight, self.bias, self.product = nn.Parameter(torch.randn(inside, out)), nn.Parameter(torch.randn(out)), product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


def captured(model: nn.Module, x: Tensor) -> Program:
    program = capture(model, (x,))
    torch.testing.assert_close(unlifted(program.exported)(x)[0], model(x), rtol=1e-5, atol=1e-5)
    return program


def operators(program: Program) -> list[str]:
    return [str(node.target) for node in program.exported.graph.nodes if node.op == "call_function"]


PRODUCTS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], list[str]]] = {
    "@": (lambda x, w, b: x @ w, ["aten.linear.default"]),
    "mm": (lambda x, w, b: torch.mm(x, w), ["aten.linear.default"]),
    "addmm": (lambda x, w, b: torch.addmm(b, x, w), ["aten.linear.default"]),
    "@ +": (lambda x, w, b: x @ w + b, ["aten.linear.default", "aten.add.Tensor"]),
    "addmm of one number": (lambda x, w, b: torch.addmm(b[:1], x, w), ["aten.linear.default", "aten.add.Tensor"]),
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_product_with_a_constant_is_a_linear_layer(kind: str) -> None:
    torch.manual_seed(0)
    product, expected = PRODUCTS[kind]
    program = captured(Product(product), torch.randn(3, 6))
    assert operators(program) == expected
    [weight] = weights(program.exported)
    assert weight.name == "weight" and weight.value.shape == (4, 6)


def test_an_addmm_with_factors_is_computed_as_it_stands() -> None:
    torch.manual_seed(0)
    captured(Product(lambda x, w, b: torch.addmm(b, x, w, beta=0.5, alpha=2.0)), torch.randn(3, 6))


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(inside=st.integers(1, 9), out=st.integers(1, 9), lead=st.lists(st.integers(2, 3), min_size=1, max_size=3))
def test_products_of_every_shape_stay_what_they_are(inside: int, out: int, lead: list[int]) -> None:
    program = captured(Product(lambda x, w, b: x @ w, inside, out), torch.randn(*lead, inside))
    assert [weight.value.shape for weight in weights(program.exported)] == [(out, inside)]


class Tied(nn.Module):
    """The output layer is the embedding, turned."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens) @ self.embed.weight.t()


def test_a_turned_embedding_stays_tied() -> None:
    program = captured(Tied(), torch.randint(12, (2, 5)))
    [weight] = weights(program.exported)
    assert weight.name == "embed.weight" and len(weight.readers) == 2 and weight.others == ()
    assert list(program.exported.state_dict) == ["embed.weight"]


class Between(nn.Module):
    """A product of two computed values is none with a constant."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ (x.t() @ x)


def test_a_product_of_values_stays() -> None:
    assert "aten.linear.default" not in operators(captured(Between(), torch.randn(3, 6)))
