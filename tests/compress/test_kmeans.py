from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.compress.kmeans import kmeans, nearest, used
from qn_deploy.errors import CompressionError


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 300), st.integers(1, 5), st.integers(2, 40), st.integers(0, 5))
def test_every_centroid_is_used_and_every_block_has_its_nearest(n: int, d: int, k: int, seed: int) -> None:
    blocks = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    centroids, codes = kmeans(blocks, k, seed=seed)
    assert centroids.shape[0] <= k and centroids.shape[1] == d and codes.shape == (n,) and codes.dtype == torch.int64
    assert torch.unique(codes).tolist() == list(range(centroids.shape[0]))
    distances = torch.cdist(blocks, centroids)
    chosen = distances.gather(1, codes[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.amin(1), atol=1e-3, rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 400), st.integers(0, 5))
def test_few_distinct_blocks_come_back_exactly(distinct: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(distinct, 3, generator=generator)[torch.randint(distinct, (n,), generator=generator)]
    centroids, codes = kmeans(blocks, 8)
    assert torch.equal(centroids[codes], blocks)
    assert centroids.shape[0] == torch.unique(blocks, dim=0).shape[0]


def test_a_new_block_behind_many_equal_ones_is_seen() -> None:
    blocks = torch.zeros(1000, 2)
    blocks[-100:] = torch.arange(200.0).reshape(100, 2)
    centroids, codes = kmeans(blocks, 4)
    assert centroids.shape[0] == 4 and codes[-1] != codes[0]


@settings(max_examples=20, deadline=None)
@given(st.integers(9, 12), st.integers(0, 50))
def test_no_centroid_is_empty_where_blocks_repeat(distinct: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(distinct, 2, generator=generator)[torch.randint(distinct, (500,), generator=generator)]
    centroids, codes = kmeans(blocks, 8, seed=seed)
    assert torch.unique(codes).tolist() == list(range(centroids.shape[0]))


def test_clusters_are_found() -> None:
    means = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    blocks = (means[:, None] + 0.1 * torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    centroids, codes = kmeans(blocks, 3)
    torch.testing.assert_close(centroids[codes].reshape(3, 50, 2)[:, 0], means, atol=0.1, rtol=0)


def test_same_seed_same_codes() -> None:
    blocks = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    first, second, other = (kmeans(blocks, 64, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(CompressionError, match="NaN or infinity"):
        kmeans(torch.tensor([[1.0, bad], [0.0, 0.0]]), 2)


def test_nearest_and_used() -> None:
    table = torch.tensor([[0.0], [5.0], [9.0]])
    codes = nearest(torch.tensor([[8.0], [-1.0]]), table)
    assert codes.tolist() == [2, 0]
    kept, codes = used(table, codes)
    assert kept.tolist() == [[0.0], [9.0]] and codes.tolist() == [1, 0]
