from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.verification.numerics import compare

NAN, INF = math.nan, math.inf


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize(
    ("found", "expected", "decibel"),
    [
        ([10.0, 0.0], [10.0, 0.0], INF),
        ([10.0, 1.0], [10.0, 0.0], 20.0),  # 10 log10(100 / 1)
        ([0.0, 3.0, 4.5], [0.0, 3.0, 4.0], 20.0),  # 10 log10(25 / 0.25)
        ([2.0], [1.0], 0.0),
        ([-1.0], [1.0], -6.0206),  # 10 log10(1 / 4)
        ([0.0, 0.0], [0.0, 0.0], INF),
        ([1.0, 0.0], [0.0, 0.0], -INF),  # noise over no signal
    ],
)
def test_sqnr(found: list[float], expected: list[float], decibel: float) -> None:
    assert compare(floats(*found), floats(*expected)).sqnr_db == pytest.approx(decibel, abs=1e-4)


def test_every_number_of_a_worked_example() -> None:
    result = compare(floats(1.0, 2.0, 3.0, 5.0).reshape(2, 2), floats(1.0, 2.5, 3.0, 2.0).reshape(2, 2), step=0.5)
    assert not result.identical
    assert result.max_error == 3.0
    assert result.steps == 6.0
    assert result.differing == 0.5
    assert result.sqnr_db == pytest.approx(10 * math.log10(20.25 / 9.25))
    assert result.cosine == pytest.approx((1 + 5 + 9 + 10) / math.sqrt(39 * 20.25))
    assert result.top1 == 0.5


def test_steps_are_counted_in_units_of_the_output() -> None:
    step = 0.1  # outputs are float32(step) * integer: not exact, never half a step off
    grid = torch.arange(-128, 128) * torch.tensor(step)
    assert compare(grid[1:], grid[:-1], step).steps == pytest.approx(1.0, abs=1e-4)
    assert compare(grid[3:], grid[:-3], step).steps == pytest.approx(3.0, abs=1e-4)
    assert compare(grid + 1e-6, grid, step).differing == 0.0
    assert compare(grid + 1e-6, grid).differing == 1.0
    assert compare(grid, grid).steps is None


def test_identical_means_dtype_and_bits() -> None:
    one = floats(1.0, 2.0)
    assert compare(one, one.clone()).identical
    assert not compare(one, floats(1.0, math.nextafter(2.0, 3.0) + 2**-22)).identical
    assert not compare(one.double(), one).identical
    assert compare(torch.tensor([2**60 + 1]), torch.tensor([2**60 + 1])).identical
    assert not compare(torch.tensor([2**60 + 1]), torch.tensor([2**60])).identical  # the same float64


def test_the_sign_of_zero_is_no_difference() -> None:
    result = compare(floats(-0.0, 1.0), floats(0.0, 1.0), step=1.0)
    assert (result.identical, result.max_error, result.differing, result.sqnr_db) == (True, 0.0, 0.0, INF)


@pytest.mark.parametrize(("found", "expected"), [(NAN, 1.0), (1.0, NAN), (INF, NAN)])
@pytest.mark.parametrize("step", [None, 0.5])
def test_nan_agrees_with_no_number(found: float, expected: float, step: float | None) -> None:
    result = compare(floats(found, 1.0), floats(expected, 1.0), step)
    assert not result.identical
    assert math.isnan(result.max_error)
    assert step is None or not result.steps <= 1e30
    assert result.differing == 0.5
    assert result.sqnr_db == -INF
    assert not result.cosine > 0
    assert result.top1 == 0.0


@pytest.mark.parametrize("step", [None, 0.5])
def test_nan_in_both_is_the_same_and_no_signal(step: float | None) -> None:
    result = compare(floats(NAN, 1.0), floats(NAN, 1.0), step)
    assert (result.identical, result.max_error, result.differing, result.sqnr_db, result.cosine, result.top1) == (True, 0, 0, INF, 1, 1)
    assert compare(floats(NAN, 11.0), floats(NAN, 10.0)).sqnr_db == pytest.approx(20.0)


def test_nan_costs_the_top1_of_its_own_row_only() -> None:
    rows = torch.tensor([[NAN, 1.0], [2.0, 1.0]])
    assert compare(rows, rows.nan_to_num(0.0)).top1 == 0.5
    assert compare(rows, rows).top1 == 1.0


def test_of_equal_entries_any_may_be_the_largest() -> None:
    tied = torch.tensor([[2.0, 2.0, 1.0]])
    assert compare(tied, torch.tensor([[2.0, 2.1, 1.0]])).top1 == 1.0
    assert compare(torch.tensor([[2.0, 2.1, 1.0]]), tied).top1 == 1.0
    assert compare(tied, torch.tensor([[2.0, 2.0, 2.1]])).top1 == 0.0


def test_infinity_agrees_with_itself_alone() -> None:
    assert compare(floats(INF, -INF, 1.0), floats(INF, -INF, 1.0)).identical
    assert compare(floats(INF, 1.0), floats(INF, 1.0), step=1.0).steps == 0.0
    for found, expected in [(INF, -INF), (INF, 1.0), (1.0, INF)]:
        result = compare(floats(found, 1.0), floats(expected, 1.0), step=1.0)
        assert (result.identical, result.steps, result.sqnr_db) == (False, INF, -INF)
    # A matched infinity is no signal that could drown the noise of the other values, and no noise.
    assert compare(floats(INF, 2.0), floats(INF, 1.0)).sqnr_db == 0.0


@pytest.mark.parametrize("shape", [(0,), (0, 10), (3, 0)])
def test_empty_tensors_have_nothing_to_differ_in(shape: tuple[int, ...]) -> None:
    result = compare(torch.zeros(shape), torch.zeros(shape), step=0.1)
    assert (result.identical, result.steps, result.differing, result.sqnr_db, result.cosine, result.top1) == (True, 0.0, 0.0, INF, 1.0, 1.0)


def test_a_scalar_is_one_row_of_one_value() -> None:
    result = compare(torch.tensor(1.5), torch.tensor(1.0), step=0.5)
    assert (result.identical, result.max_error, result.steps, result.differing, result.top1) == (False, 0.5, 1.0, 1.0, 1.0)


def test_integers_and_booleans_are_compared_too() -> None:
    assert compare(torch.tensor([1, 2]), torch.tensor([1, 4])).max_error == 2.0
    assert [compare(each, each).is_float for each in (torch.tensor([1]), torch.tensor([True]), floats(1.0))] == [False, False, True]
    assert compare(torch.tensor([True, False]), torch.tensor([True, True])).differing == 0.5


@pytest.mark.parametrize(("found", "expected"), [((2, 3), (3, 2)), ((6,), (2, 3)), ((1, 3), (2, 3)), ((), (1,))])
def test_shapes_must_be_the_same(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"found shape \[.*\], expected \[.*\]"):
        compare(torch.zeros(found), torch.zeros(expected))


values = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(values, st.floats(1e-3, 10))
def test_a_tensor_agrees_with_itself_and_only_with_itself(numbers: list[float], step: float) -> None:
    tensor = floats(*numbers)
    same = compare(tensor, tensor.clone(), step)
    assert (same.identical, same.steps, same.differing, same.sqnr_db, same.top1) == (True, 0.0, 0.0, INF, 1.0)
    moved = tensor.clone()
    moved[0] = moved[0] + 1.0 + moved[0].abs()
    other = compare(moved, tensor, step)
    assert not other.identical
    assert other.steps is not None
    assert other.steps > 0
    assert other.sqnr_db < INF
    assert compare(moved * 4, tensor * 4).sqnr_db == pytest.approx(other.sqnr_db)  # a ratio has no unit
