from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.compress.weights import IntWeight
from qn_deploy.noise.functions import int8, straight_through, zero_blocks

torch.set_num_threads(1)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def a_weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random, and nowhere zero."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(weight.abs() < 0.01, 0.5, weight).to(dtype)


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 9),
    columns=st.integers(1, 7),
    d=st.integers(1, 9),
    p=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_zero_blocks_zeroes_whole_blocks_and_nothing_else(out: int, columns: int, d: int, p: float, dtype: torch.dtype, seed: int) -> None:
    weight = a_weight(out, columns * d, dtype=dtype, seed=seed)
    torch.manual_seed(seed)
    noised = zero_blocks(weight, p, d)
    assert noised.dtype == dtype and noised.shape == weight.shape
    blocks, clean = noised.reshape(out, columns, d), weight.reshape(out, columns, d)
    zero = (blocks == 0).all(-1)
    assert torch.equal(blocks[~zero], clean[~zero])


def test_a_block_of_nine_is_one_3x3_kernel() -> None:
    weight = a_weight(16, 8, 3, 3)
    torch.manual_seed(0)
    zero = zero_blocks(weight, 0.3, 9) == 0  # [out, in, kh, kw]
    assert torch.equal(zero.flatten(2).any(-1), zero.flatten(2).all(-1))
    assert 0 < zero.flatten(2).all(-1).sum() < 16 * 8


def test_blocks_run_along_a_row_also_in_channels_last() -> None:
    weight = a_weight(4, 6, 3, 3)
    torch.manual_seed(0)
    expected = zero_blocks(weight, 0.5, 9)
    torch.manual_seed(0)
    assert torch.equal(zero_blocks(weight.to(memory_format=torch.channels_last), 0.5, 9), expected)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_rate_is_the_share_that_is_distorted(p: float) -> None:
    torch.manual_seed(0)
    weight = a_weight(400, 400)
    tolerance = 5 * (p * (1 - p)) ** 0.5
    blocks = (zero_blocks(weight, p, 4) == 0).float().mean()
    assert abs(float(blocks) - p) < tolerance / (400 * 100) ** 0.5
    singles = (int8(weight, p) != weight).float().mean()  # a row's largest weight is on the grid already
    assert abs(float(singles) - p) < tolerance / (400 * 400) ** 0.5 + 2 / 400


@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_at_rate_1_is_the_weight_that_compression_stores(per_channel: bool) -> None:
    weight = a_weight(12, 5, 3, 3)
    assert torch.equal(int8(weight, 1.0, per_channel), IntWeight.from_float(weight, per_channel).dequantize())


def test_int8_literal() -> None:
    weight = torch.tensor([[127.0, 0.4, -2.6], [0.0, 0.0, 0.0], [-12.7, 0.26, 0.05]])
    expected = torch.tensor([[127.0, 0.0, -3.0], [0.0, 0.0, 0.0], [-12.7, 0.3, 0.0]])
    torch.testing.assert_close(int8(weight, 1.0), expected, rtol=1e-6, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(out=st.integers(1, 9), row=st.integers(1, 30), p=st.floats(0, 1), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**20))
def test_int8_moves_a_weight_to_the_grid_or_leaves_it(out: int, row: int, p: float, dtype: torch.dtype, seed: int) -> None:
    weight = a_weight(out, row, dtype=dtype, seed=seed)
    torch.manual_seed(seed)
    noised = int8(weight, p)
    assert noised.dtype == dtype and noised.shape == weight.shape
    on_grid = noised == IntWeight.from_float(weight).dequantize().to(dtype)
    assert bool(((noised == weight) | on_grid).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rates_0_and_1(dtype: torch.dtype) -> None:
    weight = a_weight(6, 8, dtype=dtype)
    assert torch.equal(zero_blocks(weight, 0.0, 4), weight)
    assert torch.equal(int8(weight, 0.0), weight)
    assert torch.equal(zero_blocks(weight, 1.0, 4), torch.zeros_like(weight))


def test_straight_through_literal() -> None:
    weight = torch.tensor([3.0, -5.0, 7.0], requires_grad=True)
    noised = torch.tensor([0.0, -4.0, 7.0])
    seen = straight_through(weight, noised)
    torch.autograd.backward((seen * torch.tensor([10.0, 20.0, 30.0])).sum())
    assert seen.tolist() == [0.0, -4.0, 7.0]
    assert weight.grad is not None and weight.grad.tolist() == [10.0, 20.0, 30.0]
