from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from qn_deploy.exporting.collapse import collapsed

DRAW = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=DRAW)


def in_steps(values: Tensor, step: float) -> Tensor:
    return (values / step).round() * step


BOXES = torch.cat([300 * drawn(2, 40, 4), drawn(2, 40, 6)], 2)  # pixels, then scores


def test_scores_that_share_the_step_of_pixels_are_lost_and_named() -> None:
    reason = collapsed(in_steps(BOXES, 300 / 127), BOXES)
    assert reason is not None
    assert reason.startswith(
        "6 of 10 channels of dimension 2 (4, 5, 6, 7, 8, 9) are one value each, where the float model's vary, up to 0.9"
    )
    assert collapsed(in_steps(BOXES, 1 / 255), BOXES) is None


@pytest.mark.parametrize("shape", [(2, 8, 30), (2, 30, 8), (1, 8, 5, 6)])
def test_a_channel_is_found_in_either_of_three_dimensions_and_behind_the_batch(shape: tuple[int, ...]) -> None:
    axis = 2 if shape == (2, 30, 8) else 1
    expected = drawn(*shape)
    found = expected.clone()
    found.select(axis, 3).fill_(0.5)
    reason = collapsed(found, expected)
    assert reason is not None and reason.startswith(f"1 of 8 channels of dimension {axis} (3) are one value each")


def test_many_channels_are_not_all_listed() -> None:
    reason = collapsed(torch.zeros(2, 50, 30).index_fill(1, torch.tensor([0]), 1.0) * drawn(2, 50, 30), drawn(2, 50, 30))
    assert reason is not None and "49 of 50 channels of dimension 1 (1, 2, 3, 4, 5, 6, 7, 8 and 41 more)" in reason


@pytest.mark.parametrize("shape", [(2, 5), (2,), (8, 1), (1, 3, 4, 4)])
def test_an_output_that_is_one_value(shape: tuple[int, ...]) -> None:
    reason = collapsed(torch.full(shape, 0.25), drawn(*shape))
    assert reason is not None and f"all {math.prod(shape)} values are 0.25, where the float model's go from 0." in reason


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (torch.ones(4, 8), torch.ones(4, 8)),  # constant in the float model too
        (torch.ones(4, 8), 1 + 0.01 * drawn(4, 8)),  # random weights: it hardly depends on the input
        (torch.zeros(0, 8), torch.zeros(0, 8)),
        (torch.tensor(1.0), torch.tensor(2.0)),  # one value can't vary
        (torch.zeros(4, dtype=torch.int64), torch.arange(4)),  # integers are compared, not weighed
        (in_steps(drawn(2, 10), 0.2), drawn(2, 10)),  # two values of a channel often lie on one step
    ],
)
def test_what_has_not_collapsed(found: Tensor, expected: Tensor) -> None:
    assert collapsed(found, expected) is None


def test_one_channel_near_zero_among_others_that_hardly_vary_is_chance() -> None:
    """A network with random weights: each channel is its bias, and one bias is nearly 0."""
    expected = torch.linspace(0, 1, 8)[None, :, None, None] + 1e-3 * drawn(2, 8, 6, 6)
    assert collapsed(in_steps(expected, 1 / 127), expected) is None


def test_nan_where_the_float_model_gives_numbers() -> None:
    expected = drawn(2, 5)
    found = expected.clone()
    found[0, 1] = math.nan
    assert collapsed(found, expected) == "1 of 10 values are NaN where the float model gives numbers"
    assert collapsed(found, found) is None
