from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.recipe import Int4, Int8, Table
from qn_deploy.weights.compressed import IntWeight, PQWeight
from qn_deploy.weights.grid import limit, row_scale
from qn_deploy.weights.tables import table_from_weight


def test_minmax_puts_the_largest_weight_at_the_end_of_the_grid() -> None:
    rows = torch.tensor([[0.5, -2.54], [127.0, 1.0]])
    assert torch.allclose(row_scale(rows, Int8()), torch.tensor([0.02, 1.0]))
    assert torch.allclose(row_scale(rows, Int4(range="minmax")), torch.tensor([2.54 / 7, 127 / 7]))


@pytest.mark.parametrize("method", [Int8(), Int4()])
def test_every_row_gets_a_positive_scale(method: Int8 | Int4) -> None:
    assert (row_scale(torch.tensor([[0.0], [1e-45], [254.0]]), method) > 0).all()
    assert (row_scale(torch.zeros(2, 3), method) > 0).all()


@pytest.mark.parametrize("method", [Int8(), Int4(), Table(2, 16), Table(2, 16, residual=16)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_too_small_for_a_normal_scale_are_zeros(method: Int8 | Int4 | Table, per_channel: bool) -> None:
    weight = 1e-42 * torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found: PQWeight | IntWeight
    if isinstance(method, Table):
        found = table_from_weight(weight, method, per_channel=per_channel)
    else:
        found = IntWeight.from_float(weight, per_channel, method)
    assert (found.scale >= torch.finfo(torch.float32).tiny).all()
    assert not found.dequantize().any()


@given(st.integers(0, 2**32), st.sampled_from([4, 8]))
@settings(deadline=None, max_examples=20)
def test_least_squares_never_loses_more_than_minmax(seed: int, bits: int) -> None:
    rows = torch.randn(200, 64, generator=torch.Generator().manual_seed(seed))
    method = Int8 if bits == 8 else Int4

    def error(scale: torch.Tensor) -> torch.Tensor:
        rounded = (rows / scale[:, None]).round().clamp(-limit(bits), limit(bits)) * scale[:, None]
        return (rounded - rows).square().sum(1)

    best, plain = error(row_scale(rows, method(range="least_squares"))), error(row_scale(rows, method(range="minmax")))
    assert (best <= plain).all()
    if bits == 4:  # fifteen steps: clipping the largest of 64 normal weights pays on the whole
        assert best.sum() < 0.95 * plain.sum()
