from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.errors import InputError
from qn_deploy.noise.schedule import Constant, Cosine, Linear

RATES = st.floats(0, 1)


def test_constant() -> None:
    assert [Constant(0.1)(step) for step in (0, 1, 10**9)] == [0.1, 0.1, 0.1]


def test_linear_literal() -> None:
    schedule = Linear(0.0, 0.5, steps=4, delay=2)
    assert [schedule(step) for step in range(8)] == [0.0, 0.0, 0.0, 0.125, 0.25, 0.375, 0.5, 0.5]


def test_cosine_literal() -> None:
    schedule = Cosine(1.0, 0.0, steps=4)
    expected = [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0, 0.0]
    assert [schedule(step) for step in range(6)] == pytest.approx(expected, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from([Linear, Cosine]), start=RATES, end=RATES, steps=st.integers(1, 50), delay=st.integers(0, 50))
def test_a_ramp_meets_both_ends_and_never_turns_back(
    kind: type[Linear] | type[Cosine], start: float, end: float, steps: int, delay: int
) -> None:
    schedule = kind(start, end, steps, delay)
    rates = [schedule(step) for step in range(delay + steps + 3)]
    assert set(rates[: delay + 1]) == {start} and set(rates[delay + steps :]) == {end}
    assert all(min(start, end) - 1e-12 <= rate <= max(start, end) + 1e-12 and 0 <= rate <= 1 for rate in rates)
    moves = [later - earlier for earlier, later in pairwise(rates)]
    assert all(move * (end - start) >= -1e-12 for move in moves)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_to_1_is_refused(p: float) -> None:
    for make in (lambda: Constant(p), lambda: Linear(p, 0.5, 3), lambda: Cosine(0.5, p, 3)):
        with pytest.raises(InputError, match=r"is not in 0\.\.1"):
            make()


@pytest.mark.parametrize(("steps", "delay"), [(0, 0), (-1, 0), (1, -1)])
def test_steps_out_of_range_are_refused(steps: int, delay: int) -> None:
    with pytest.raises(InputError, match="expected 1 or more after 0 or more"):
        Linear(0.0, 0.5, steps, delay)
