from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.compression import IntWeight, PQWeight
from qn_deploy.compression.feedback import Curvature, Feedback, assign, integers_with_feedback, refit, table_with_feedback
from qn_deploy.compression.moments import Moments
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.recipe import Int4, Int8, Table
from qn_deploy.weights.tables import table_from_weight

PLAIN = Feedback(correction=0.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(n: int, groups: int = 1, seed: int = 0) -> Tensor:
    """[groups, 4n, n] inputs that go together, as those of a network do."""
    return random(groups, 4 * n, n, seed=seed) @ (random(groups, n, n, seed=seed + 1) / 2 + 1)


def seen(x: Tensor, y: Tensor | None = None, config: Feedback = PLAIN) -> Curvature:
    return Curvature.of(Moments(x.mT @ x, (x if y is None else y).mT @ x), config)


def lost(weight: Tensor, found: PQWeight | IntWeight, x: Tensor) -> float:
    """Squared error of a layer's outputs relative to them."""
    rows = weight.reshape(len(x), -1, x.shape[2])
    error = rows - found.dequantize().reshape(rows.shape)
    return float((x @ error.mT).square().sum() / (x @ rows.mT).square().sum())


def factor(gram: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)


def test_what_one_weight_loses_the_next_makes_up_for() -> None:
    # The two inputs are nearly one: only the sum of the weights counts, which is nearer to 1 than to 0.
    grid = torch.tensor([[[-1.0], [0.0], [1.0]]])
    rows = torch.tensor([[[0.4, 0.4], [-0.4, -0.4]]])
    together = torch.tensor([[[1.0, 0.99], [0.99, 1.0]]])
    assert assign(rows, factor(together), grid).tolist() == [[1, 2], [1, 0]]
    assert assign(rows, factor(torch.eye(2)[None]), grid).tolist() == [[1, 1], [1, 1]]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9))
def test_the_factor_is_that_of_the_inverse(groups: int, n: int, seed: int) -> None:
    known = seen(inputs(n, groups, seed))
    torch.testing.assert_close(known.upper.mT @ known.upper @ known.gram, torch.eye(n).expand(groups, n, n), rtol=1e-3, atol=1e-3)
    assert torch.equal(known.upper, known.upper.triu()) and bool((known.upper.diagonal(dim1=1, dim2=2) > 0).all())


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 60), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
@example(1, 2, 60, 3, 2, 0)  # a row longer than what is coded at once
def test_codes_are_those_of_one_block_after_the_other(groups: int, out: int, columns: int, d: int, books: int, seed: int) -> None:
    n, books = columns * d, min(books, columns)
    rows, table = random(groups, out, n, seed=seed), random(books, 5, d, seed=seed + 1)
    x = inputs(n, groups, seed)
    gram = x.mT @ x + torch.eye(n)
    upper = factor(gram.double()).float()
    found = assign(rows, upper, table).reshape(groups, out, columns)
    for group in range(groups):
        for row in range(out):
            rest, left = rows[group, row].double(), gram[group].double()
            for column in range(columns):
                # What is lost for good with each centroid, when all later weights move as they like best.
                book = table[column * books // columns].double()
                error = rest[:d] - book
                late = torch.linalg.solve(left[d:, d:], left[d:, :d]) if len(left) > d else left.new_zeros(0, d)
                cost = ((error @ (left[:d, :d] - left[:d, d:] @ late)) * error).sum(1)
                code = int(found[group, row, column])
                assert float(cost[code]) <= float(cost.min()) * 1.01 + 1e-4
                rest, left = rest[d:] + late @ error[code], left[d:, d:]


@pytest.mark.parametrize("method", [Int8(), Int4()])
@pytest.mark.parametrize("per_channel", [True, False])
def test_inputs_that_do_not_go_together_leave_plain_rounding(method: Int8 | Int4, per_channel: bool) -> None:
    weight = random(6, 5, 3, 3)
    apart = seen(torch.eye(45)[None])
    found, plain = integers_with_feedback(weight, method, apart, per_channel), IntWeight.from_float(weight, per_channel, method)
    assert torch.equal(found.values, plain.values) and torch.equal(found.scale, plain.scale) and found.bits == method.bits


@pytest.mark.parametrize(("shape", "groups"), [((32, 32), 1), ((16, 8, 3, 3), 1), ((16, 4, 3), 4)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_table_of_the_same_size_loses_less(shape: tuple[int, ...], groups: int, per_channel: bool) -> None:
    weight, method = random(*shape), Table(2 if shape[1:] == (32,) else 3, 8, codebooks=2)
    x = inputs(weight[0].numel(), groups)
    plain = table_from_weight(weight, method, per_channel=per_channel)
    found = table_with_feedback(weight, method, seen(x), per_channel=per_channel)
    assert found.nbytes <= plain.nbytes and found.shape == shape and found.scale.shape == plain.scale.shape
    assert lost(weight, found, x) < 0.5 * lost(weight, plain, x)


def test_int4_loses_less() -> None:
    weight, x = random(16, 32), inputs(32)
    found = integers_with_feedback(weight, Int4(), seen(x))
    assert lost(weight, found, x) < 0.5 * lost(weight, IntWeight.from_float(weight, method=Int4()), x)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.integers(0, 9))
def test_refitted_centroids_are_the_least_squares_solution(groups: int, out: int, columns: int, d: int, count: int, seed: int) -> None:
    n, count, size = columns * d, min(count, columns), 2
    rows, x = random(groups, out, n, seed=seed), inputs(n, groups, seed) / n
    books, codes = (
        random(count, size, d, seed=seed + 2),
        torch.randint(size, (groups * out, columns), generator=torch.Generator().manual_seed(seed)),
    )
    weights = random(groups, out, 1, seed=seed + 3).square() + 0.1
    gram = x.mT @ x + 0.3 * torch.eye(n)

    def loss(table: Tensor) -> Tensor:
        picked = torch.stack([table[column * count // columns][codes[:, column]] for column in range(columns)], 1)
        error = rows - picked.reshape(rows.shape)
        return (weights * (error @ gram) * error).sum()

    found = refit(rows, gram, books, codes, weights)
    gradient = torch.func.grad(loss)(found)
    assert float(gradient.norm()) < 1e-3 * float(torch.func.grad(loss)(books).norm()) + 1e-4
    assert float(loss(found)) <= float(loss(books)) * (1 + 1e-5)


def test_centroids_of_zeros_stay_and_so_do_rows_of_zeros() -> None:
    books = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    found = refit(torch.full((1, 2, 2), 3.0), torch.eye(2)[None], books, torch.tensor([[0], [1]]), torch.ones(1, 2, 1))
    assert found.tolist() == [[[0.0, 0.0], [3.0, 3.0]]]
    weight, x = random(8, 16), inputs(16)
    weight[2] = 0
    table = table_with_feedback(weight, Table(2, 4), seen(x))
    assert not table.int8()[2].any() and table.int8()[1].any()


def test_a_layer_makes_up_for_what_happened_to_its_inputs() -> None:
    # The compressed layers before give x = y A: with W A^-T the layer gives what the float model's does.
    weight, y, change = random(8, 6), inputs(6), torch.eye(6) + random(6, 6) / 10
    x = y @ change

    def gap(correction: float) -> float:
        config = Feedback(correction=correction, damping=1e-4, correction_damping=1e-6)
        found = integers_with_feedback(weight, Int8(), seen(x, y, config)).dequantize()
        return float((x @ found.T - y @ weight.T).square().mean().sqrt())

    assert gap(1.0) < 0.1 * gap(0.0)
    assert 0.3 * gap(0.0) < gap(0.5) < 0.7 * gap(0.0)


@pytest.mark.parametrize("size", [0.0, 1e-21])  # products of the second are next to the least number that a float32 holds
def test_inputs_that_are_next_to_zero_say_nothing(size: float) -> None:
    weight, never = random(8, 6), seen(size * random(1, 3, 6), size * random(1, 3, 6, seed=1), config=Feedback())
    found = integers_with_feedback(weight, Int8(), never)
    assert torch.equal(found.values, IntWeight.from_float(weight).values)


def test_the_same_seed_gives_the_same_table() -> None:
    weight, known = random(16, 24), seen(inputs(24))
    first, second = (table_with_feedback(weight, Table(3, 8), known, seed=3) for _ in range(2))
    assert (
        torch.equal(first.codes, second.codes) and torch.equal(first.centroids, second.centroids) and torch.equal(first.scale, second.scale)
    )


def test_what_is_not_finite_is_named() -> None:
    weight, x = random(4, 6), inputs(6)
    with pytest.raises(CompressionError, match="inputs hold NaN"):
        seen(x, torch.full_like(x, float("nan")))
    weight[0, 0] = float("inf")
    for method in (Int8(), Int4()):
        with pytest.raises(CompressionError, match="the weight holds NaN or infinity"):
            integers_with_feedback(weight, method, seen(x))
    with pytest.raises(CompressionError, match="the weight holds NaN or infinity"):
        table_with_feedback(weight, Table(2, 4), seen(x))


@pytest.mark.parametrize("wrong", [{"damping": 0.0}, {"correction": 1.5}, {"correction_damping": -1.0}, {"rounds": 0}])
def test_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected more than 0, 0 to 1, 1 or more"):
        Feedback(**wrong)
