from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from qn_deploy.compression.knapsack import Knapsack


def instance(seed: int, weights: int = 5, forms: int = 4) -> tuple[list[list[int]], list[list[float]]]:
    draw = np.random.default_rng(seed)
    sizes = [sorted(map(int, draw.integers(10, 1000, forms)), reverse=True) for _ in range(weights)]
    losses = [sorted(map(float, draw.random(forms) ** 3)) for _ in range(weights)]
    return sizes, losses


def by_trying(sizes: list[list[int]], losses: list[list[float]], budget: int) -> float:
    """The least loss of all choices."""
    fitting = [
        sum(losses[i][form] for i, form in enumerate(forms))
        for forms in product(*(range(len(each)) for each in sizes))
        if sum(sizes[i][form] for i, form in enumerate(forms)) <= budget
    ]
    return min(fitting, default=float("inf"))


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    sizes, losses = instance(seed)
    knapsack = Knapsack(sizes, losses)
    for budget in np.linspace(knapsack.smallest, knapsack.largest, 7).astype(int):
        choice = knapsack.best(int(budget))
        assert choice is not None
        assert choice.size == sum(each[form] for each, form in zip(sizes, choice.forms, strict=True)) <= budget
        assert choice.loss == pytest.approx(sum(each[form] for each, form in zip(losses, choice.forms, strict=True)))
        assert choice.loss == pytest.approx(by_trying(sizes, losses, int(budget)), rel=1e-9)  # these sizes fit into buckets of one byte
        assert knapsack.bound(int(budget)) <= choice.loss * (1 + 1e-9)
        assert 0 <= choice.gap <= 1


def test_where_sizes_are_rounded_the_budget_is_kept_and_the_gap_is_told() -> None:
    sizes, losses = instance(3, weights=40, forms=8)
    sizes = [[997 * size for size in each] for each in sizes]
    knapsack = Knapsack(sizes, losses)
    budget = (knapsack.smallest + knapsack.largest) // 3
    choice = knapsack.best(budget)
    assert choice is not None and choice.size <= budget
    assert choice.loss <= (1 + 0.02) * knapsack.bound(budget) and choice.gap < 0.02


def test_a_small_budget_is_not_wasted_where_the_largest_forms_are_far_larger() -> None:
    sizes, losses = instance(5)
    small = Knapsack(sizes, losses)
    budget = small.smallest + 40
    wide = Knapsack([[*each, 10**8] for each in sizes], [[*each, 0.0] for each in losses])
    choice, expected = wide.best(budget), small.best(budget)
    assert choice is not None and expected is not None and choice.forms == expected.forms


def test_nothing_is_smaller_than_the_smallest_and_more_than_the_largest_helps_nothing() -> None:
    knapsack = Knapsack([[4, 1], [8, 2]], [[0.0, 1.0], [0.0, 3.0]])
    assert (knapsack.smallest, knapsack.largest) == (3, 12)
    assert knapsack.best(2) is None
    (least, most) = (knapsack.best(3), knapsack.best(10**9))
    assert least is not None and least.forms == (1, 1) and least.gap == 0
    assert most is not None and (most.forms, most.loss, most.gap) == ((0, 0), 0.0, 0.0)


def test_the_frontier_falls() -> None:
    frontier = Knapsack(*instance(1)).frontier(12)
    assert 2 <= len(frontier) <= 12
    assert all(a.loss > b.loss and a.size < b.size for a, b in pairwise(frontier))
