from __future__ import annotations

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.compression.codes import assign, improved, left, refit
from tests.compression.samples import inputs, random


def factor(gram: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)


def test_what_one_weight_loses_the_next_makes_up_for() -> None:
    # The two inputs are nearly one: only the sum of the weights counts, which is nearer to 1 than to 0.
    grid = torch.tensor([[[-1.0], [0.0], [1.0]]])
    rows = torch.tensor([[[0.4, 0.4], [-0.4, -0.4]]])
    together = torch.tensor([[[1.0, 0.99], [0.99, 1.0]]])
    assert assign(rows, factor(together), grid).tolist() == [[1, 2], [1, 0]]
    assert assign(rows, factor(torch.eye(2)[None]), grid).tolist() == [[1, 1], [1, 1]]


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
            rest, corner = rows[group, row].double(), gram[group].double()
            for column in range(columns):
                # What is lost for good with each centroid, when all later weights move as they like best.
                book = table[column * books // columns].double()
                error = rest[:d] - book
                late = torch.linalg.solve(corner[d:, d:], corner[d:, :d]) if len(corner) > d else corner.new_zeros(0, d)
                cost = ((error @ (corner[:d, :d] - corner[:d, d:] @ late)) * error).sum(1)
                code = int(found[group, row, column])
                assert float(cost[code]) <= float(cost.min()) * 1.01 + 1e-4
                rest, corner = rest[d:] + late @ error[code], corner[d:, d:]


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

    found = refit(left(rows, books, codes) @ gram, gram, books, codes, weights)
    gradient = torch.func.grad(loss)(found)
    assert float(gradient.norm()) < 1e-3 * float(torch.func.grad(loss)(books).norm()) + 1e-4
    assert float(loss(found)) <= float(loss(books)) * (1 + 1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 60), st.integers(1, 3), st.integers(1, 4), st.integers(0, 9))
@example(2, 3, 60, 3, 2, 0)  # a row longer than what is coded at once
def test_improved_codes_lose_less_until_no_other_code_of_one_block_would(
    groups: int, out: int, columns: int, d: int, books: int, seed: int
) -> None:
    n, books = columns * d, min(books, columns)
    rows, table = random(groups, out, n, seed=seed).double(), random(books, 5, d, seed=seed + 1).double()
    x = inputs(n, groups, seed).double() / n
    gram = x.mT @ x + 0.1 * torch.eye(n).double()

    def losses(codes: Tensor) -> Tensor:
        error = left(rows, table, codes)
        return ((error @ gram) * error).sum(2).flatten()  # of each row

    codes = torch.randint(5, (groups * out, columns), generator=torch.Generator().manual_seed(seed))
    for _ in range(100):
        pull = left(rows, table, codes) @ gram
        better = improved(pull, gram, table, codes)
        torch.testing.assert_close(pull, left(rows, table, better) @ gram)
        assert bool((losses(better) <= losses(codes) * (1 + 1e-9) + 1e-9).all())
        if torch.equal(better, codes):
            break
        codes = better
    for column in range(columns):
        for code in range(5):
            other = codes.clone()
            other[:, column] = code
            assert bool((losses(other) >= losses(codes) * (1 - 1e-9) - 1e-9).all())
