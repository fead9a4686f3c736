from __future__ import annotations

import faiss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.errors import CompressionError
from qn_deploy.weights.kmeans import Backend, Effort, kmeans, nearest, used

backends = pytest.mark.parametrize("backend", ["faiss", "torch"])


def error(blocks: Tensor, centroids: Tensor, codes: Tensor, weights: Tensor | float = 1.0) -> float:
    """Of the weighted sum of squares."""
    return float((weights * (blocks - centroids[codes]).square()).sum() / (weights * blocks.square()).sum())


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


@backends
@settings(max_examples=20, deadline=None)
@given(st.integers(9, 12), st.booleans(), st.integers(0, 50))
def test_no_centroid_is_empty_where_blocks_repeat(backend: Backend, distinct: int, weighted: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(distinct, 2, generator=generator)[torch.randint(distinct, (500,), generator=generator)]
    weights = torch.rand(blocks.shape, generator=generator) if weighted else None
    centroids, codes = kmeans(blocks, 8, weights, seed=seed, backend=backend)
    assert torch.unique(codes).tolist() == list(range(8)) and torch.isfinite(centroids).all()


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


def weighted_distances(blocks: Tensor, centroids: Tensor, weights: Tensor) -> Tensor:
    """float64 [N, K], as the definition says."""
    return (weights.double()[:, None] * (blocks.double()[:, None] - centroids.double()).square()).sum(2)


def random_weights(shape: torch.Size, seed: int) -> Tensor:
    """Each block's weights of a size of their own, every third of them 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(shape, generator=generator) * 100 ** torch.randn(shape[0], 1, generator=generator)
    return weights * (torch.rand(shape, generator=generator) > 1 / 3)


@backends
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 300), d=st.integers(1, 12), k=st.integers(1, 40), size=st.sampled_from([1e-5, 1.0, 50.0]), seed=st.integers(0, 5))
def test_nearest_is_the_least_weighted_distance(backend: Backend, n: int, d: int, k: int, size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    blocks, centroids = size * torch.randn(n, d, generator=generator), size * torch.randn(k, d, generator=generator)
    weights = random_weights(blocks.shape, seed)
    distances = weighted_distances(blocks, centroids, weights)
    chosen = distances.gather(1, nearest(blocks, centroids, weights, backend)[:, None])[:, 0]
    assert (chosen - distances.amin(1) <= 1e-4 * (weights * size**2).sum(1)).all()


@backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_no_code(dtype: torch.dtype, backend: Backend) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks, centroids = (torch.randint(-127, 128, (n, 8), generator=generator).float() for n in (500, 64))
    expected = nearest(blocks, centroids, backend=backend)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(nearest(blocks, centroids, backend=backend), expected)


@backends
@settings(max_examples=10, deadline=None)
@given(n=st.integers(100, 400), d=st.integers(1, 5), k=st.integers(2, 30), seed=st.integers(0, 5))
def test_weighted_centroids_are_weighted_means(backend: Backend, n: int, d: int, k: int, seed: int) -> None:
    blocks = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    weights = random_weights(blocks.shape, seed)
    centroids, codes = kmeans(blocks, k, weights, Effort(100), seed=seed, backend=backend)
    assert torch.isfinite(centroids).all() and torch.unique(codes).tolist() == list(range(len(centroids)))
    for code, centroid in enumerate(centroids):
        w, x = weights[codes == code].double(), blocks[codes == code].double()
        known = w.sum(0) > 1e-2 * w.sum()  # below, the trace of weight that 0 gets has its say
        torch.testing.assert_close(centroid.double()[known], ((w * x).sum(0) / w.sum(0))[known], atol=1e-3, rtol=1e-3)


@backends
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_equal_weights_are_none(backend: Backend, weight: float) -> None:
    blocks = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    plain, equal = (kmeans(blocks, 32, weights, backend=backend) for weights in (None, torch.full_like(blocks, weight)))
    assert error(blocks, *equal) == pytest.approx(error(blocks, *plain), rel=0.01)


def test_weights_pull_the_centroids_where_they_are_large() -> None:
    blocks = torch.randn(4000, 4, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([100.0, 1.0, 1.0, 0.0]).expand_as(blocks)
    plain, weighted = kmeans(blocks, 16), kmeans(blocks, 16, weights)
    assert error(blocks, *weighted, weights) < 0.3 * error(blocks, *plain, weights)
    # Only the first dimension counts, so to say: 16 levels for it, and the mean for the one without weight.
    assert weighted[0][:, 0].sort().values.diff().amin() > 0.02
    assert weighted[0][:, 3].abs().amax() < 0.3


@backends
def test_as_good_as_the_k_means_of_faiss(backend: Backend) -> None:
    blocks = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(blocks.shape, generator=torch.Generator().manual_seed(1)).square()
    clustering = faiss.Kmeans(8, 64, niter=25, seed=0, max_points_per_centroid=20_000)
    clustering.train(blocks.numpy())
    table = torch.from_numpy(clustering.centroids)
    plain, weighted = kmeans(blocks, 64, backend=backend), kmeans(blocks, 64, weights, backend=backend)
    assert error(blocks, *plain) <= 1.003 * error(blocks, table, nearest(blocks, table))
    assert error(blocks, *weighted, weights) <= 0.97 * error(blocks, table, nearest(blocks, table, weights), weights)


@backends
@pytest.mark.parametrize("weighted", [False, True])
def test_the_number_of_threads_changes_nothing(backend: Backend, weighted: bool) -> None:
    blocks = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(blocks.shape, generator=torch.Generator().manual_seed(2)) if weighted else None
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)  # faiss and torch share OpenMP's
            found.append(kmeans(blocks, 16, weights, Effort(8), backend=backend))
    finally:
        torch.set_num_threads(before)
    for centroids, codes in found[1:]:
        assert torch.equal(centroids, found[0][0]) and torch.equal(codes, found[0][1])


def test_a_large_codebook_of_hardly_more_blocks() -> None:
    blocks = torch.randn(2500, 2, generator=torch.Generator().manual_seed(0))
    centroids, codes = kmeans(blocks, 2048, torch.rand(blocks.shape, generator=torch.Generator().manual_seed(1)), effort=Effort(3))
    assert 2000 < len(centroids) <= 2048 and torch.unique(codes).tolist() == list(range(len(centroids)))
    assert error(blocks, centroids, codes) < 2e-4


def test_few_distinct_blocks_of_a_large_codebook_come_back_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(3000, 2, generator=generator)[torch.randint(3000, (40_000,), generator=generator)]
    centroids, codes = kmeans(blocks, 65_536, torch.rand(blocks.shape, generator=generator))
    assert torch.equal(centroids[codes], blocks) and len(centroids) <= 3000


def test_clusters_of_all_sizes_are_found() -> None:
    # Drawn at random, the first centroids would nearly all lie in the large cluster.
    generator = torch.Generator().manual_seed(0)
    means = 10 * torch.randn(15, 3, generator=generator)
    blocks = torch.cat([torch.zeros(5000, 3), means.repeat(20, 1)]) + 0.01 * torch.randn(5300, 3, generator=generator)
    assert error(blocks, *kmeans(blocks, 24)) < 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_weight_that_is_none_is_refused(bad: float) -> None:
    with pytest.raises(CompressionError, match="finite and not negative"):
        kmeans(torch.zeros(2, 2), 2, torch.tensor([[1.0, bad], [0.0, 0.0]]))


def test_centroids_of_zeros_are_as_good_as_each_other() -> None:
    assert set(nearest(torch.ones(30, 2), torch.zeros(3, 2), torch.ones(30, 2)).tolist()) <= {0, 1, 2}
    assert nearest(torch.zeros(30, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.ones(30, 2)).tolist() == [1] * 30
