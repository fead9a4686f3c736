from __future__ import annotations

import numpy as np
import pytest

from qn_deploy.compression.choices import Choices
from qn_deploy.compression.effects import Form
from qn_deploy.recipe import Float, Int4, Int8, Method, Table

SIZES: dict[Method, int] = {Float(): 4000, Int8(): 1000, Int4(): 500, Table(2, 16): 250, Table(4, 16): 125}


def forms(felt: float, without: tuple[Method, ...] = ()) -> tuple[Form, ...]:
    """Of one weight of 1,000 values, which the outputs feel so much: what is lost falls by a factor of 4 for each bit."""
    losses = {method: 0.0 if method == Float() else felt * 4 ** (-size / 125) for method, size in SIZES.items()}
    return tuple(Form(method, None, size, losses[method]) for method, size in SIZES.items() if method not in without)


@pytest.fixture(scope="module")
def choices() -> Choices:
    draw = np.random.default_rng(0)
    return Choices([forms(10 ** float(draw.uniform(-4, 0))) for _ in range(12)])


def test_each_way_keeps_the_budget_and_the_first_loses_least_by_what_was_measured(choices: Choices) -> None:
    for budget in (1_500, 2_000, 3_100, 6_000, 12_001, 10**6):
        found = [way(budget) for way in choices.ways]
        assert all(choice is not None and choice.size <= budget for choice in found)
        first, *others = (choice for choice in found if choice is not None)
        assert all(first.loss <= other.loss * (1 + 1e-9) and first.gap <= other.gap for other in others)
    assert [way(1_499) for way in choices.ways] == [None] * 3 == [way(-5) for way in choices.ways]


def test_evened_sizes_lie_between_those_by_what_was_measured_and_all_alike(choices: Choices) -> None:
    measured, evened, alike = (way(3_000) for way in choices.ways)
    assert measured is not None and evened is not None and alike is not None

    def spread(taken: tuple[int, ...]) -> float:
        return float(np.std([np.log([*SIZES.values()][form]) for form in taken]))

    assert len(set(alike.forms)) == 1
    assert 0.1 < spread(evened.forms) < spread(measured.forms)


def test_all_are_alike_but_for_the_fewest_that_have_to_leave(choices: Choices) -> None:
    alike = choices.ways[2]
    for budget, left in ((12 * 250, 0), (12 * 250 + 100, 0), (12 * 250 - 1, 1), (12 * 250 - 300, 3), (12 * 500, 0)):
        choice = alike(budget)
        assert choice is not None
        usual = max(set(choice.forms), key=choice.forms.count)
        assert sum(form != usual for form in choice.forms) == left
    lightest = choices.measured.best(choices.measured.smallest)
    one = alike(12 * 250 - 1)
    assert one is not None and lightest is not None and one.loss < lightest.loss


def test_a_weight_that_can_not_have_the_method_is_int8() -> None:
    alike = Choices([forms(0.1), forms(0.1, without=(Table(4, 16), Int4())), forms(0.1)]).ways[2]
    choice = alike(125 + 1000 + 125)
    assert choice is not None and choice.size == 1250
    assert choice.forms == (4, 1, 4)


def test_what_no_output_feels_is_no_trouble() -> None:
    choices = Choices([forms(0.0), forms(0.0)])
    assert all((choice := way(700)) is not None and choice.loss == 0 for way in choices.ways)
