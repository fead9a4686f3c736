from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.noise.functions import Noise
from qn_deploy.noise.product import Clusters, ExactNoise, MeanNoise, ZeroNoise
from qn_deploy.recipe import Table
from qn_deploy.weights.tables import table_from_weight

torch.set_num_threads(1)


def a_weight(*shape: int, seed: int = 0) -> Tensor:
    """Random, and nowhere zero."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(weight.abs() < 0.01, 0.5, weight)


def learnt(noise: Noise, weight: Tensor) -> Noise:
    noise.refresh(weight)
    return noise


def test_zero_noise_makes_blocks_zero() -> None:
    weight = a_weight(6, 8)
    assert not ZeroNoise(4)(weight, 1.0).any()
    torch.manual_seed(0)
    zero = (ZeroNoise(4)(weight, 0.5) == 0).view(-1, 4)
    assert torch.equal(zero.any(1), zero.all(1)) and 0 < zero.all(1).sum() < 12


@pytest.mark.parametrize(
    ("shape", "d", "unit"),
    [
        ((16, 8, 3, 3), 9, "one 3x3 kernel"),
        ((16, 1, 5, 5), 25, "a depthwise 5x5 kernel"),
        ((16, 1, 5, 5), 5, "a line of it"),
        ((16, 1, 3, 3), 9, "a depthwise 3x3 kernel"),
        ((16, 4, 1, 1), 4, "the inputs of a grouped 1x1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_blocks_of_kernels(shape: tuple[int, ...], d: int, unit: str) -> None:
    torch.manual_seed(0)
    zero = (ZeroNoise(d)(a_weight(*shape), 0.3) == 0).reshape(shape[0], -1, d)
    assert torch.equal(zero.any(-1), zero.all(-1)) and 0 < zero.all(-1).sum() < zero.shape[0] * zero.shape[1]


def test_mean_noise_literal() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 12.0]])
    assert MeanNoise(2)(weight, 1.0).tolist() == [[4.0, 6.0, 4.0, 6.0]] * 2


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(
    "method",
    [Table(4, 16, 1), Table(2, 16, 4), Table(4, 8, 3, residual=8), Table(2, 300, 1), Table(4, 256)],
    ids=["one book", "local books", "residual", "16-bit codes", "as many books as pay"],
)
@pytest.mark.parametrize("shape", [(24, 32), (24, 8, 2, 2)], ids=str)
def test_rate_1_after_a_refresh_is_the_table_that_compression_stores(shape: tuple[int, ...], method: Table, per_channel: bool) -> None:
    weight = a_weight(*shape)
    noise = learnt(ExactNoise(weight, method, per_channel), weight)
    stored = table_from_weight(weight, method, per_channel=per_channel).dequantize()
    near = torch.isclose(noise(weight, 1.0), stored, rtol=1e-5, atol=1e-6).float().mean()
    assert float(near) > 0.99  # but for blocks halfway between two centroids


def test_exact_noise_takes_the_nearest_centroid_of_the_weight_as_it_is_now() -> None:
    weight = torch.tensor([[1.0, 1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    noise = learnt(ExactNoise(weight, Table(2, 2, 1), per_channel=False), weight)
    moved = torch.tensor([[0.9, 0.8, 0.2, 0.1], [-0.5, -2.0, -1.0, -1.0]])
    torch.testing.assert_close(noise(moved, 1.0), torch.tensor([[1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, -1.0, -1.0]]), rtol=0.01, atol=0.0)


@pytest.mark.parametrize("books", [1, 2])
def test_exact_noise_may_draw_no_block(books: int) -> None:
    weight = a_weight(4, 8)
    assert torch.equal(learnt(ExactNoise(weight, Table(2, 4, books, residual=2)), weight)(weight, 0.0), weight)


def test_a_small_codebook_beside_a_large_one_gets_no_codewords_that_are_not_its_own() -> None:
    weight = torch.cat([a_weight(16, 4), torch.ones(16, 4)], 1)
    noise = learnt(ExactNoise(weight, Table(2, 8, 2), per_channel=False), weight)
    weight[:, 4:] = 0.01  # nearer to zero than to the only codeword
    torch.testing.assert_close(noise(weight, 1.0)[:, 4:], torch.ones(16, 4), rtol=0.02, atol=0.0)


@settings(max_examples=20, deadline=None)
@given(out=st.integers(1, 12), columns=st.integers(1, 6), d=st.integers(1, 4), books=st.integers(1, 6), seed=st.integers(0, 2**20))
def test_a_block_becomes_a_codeword_of_its_own_column_or_stays(out: int, columns: int, d: int, books: int, seed: int) -> None:
    weight = a_weight(out, columns * d, seed=seed)
    noise = ExactNoise(weight, Table(d, 4, books))
    noise.refresh(weight)
    torch.manual_seed(seed)
    noised = noise(weight, 0.5).view(out, columns, d)
    count = len(noise.centroids)
    for column in range(columns):
        codewords = noise.scale[:, None, None] * noise.centroids[column * count // columns].float()  # [out, K, d]
        is_word = (noised[:, column, None] == codewords).all(2).any(1)
        stays = (noised[:, column] == weight.view(out, columns, d)[:, column]).all(1)
        assert bool((is_word | stays).all())


@pytest.mark.parametrize(
    "inner", [lambda weight, method: ZeroNoise(4), lambda weight, method: ExactNoise(weight, method)], ids=["zero", "exact"]
)
def test_clusters_are_drawn_whole(inner: Callable[[Tensor, Table], Noise]) -> None:
    weight, method = a_weight(32, 32), Table(4, 8, 2)
    noise = Clusters(weight, inner(weight, method), method)
    noise.refresh(weight)
    torch.manual_seed(1)
    changed = (noise(weight, 0.5) != weight).reshape(32, 8, 4).any(-1)
    cluster = noise.codes.long() + torch.arange(8) // 4 * 8
    by_cluster = [changed[cluster == index] for index in range(16)]
    assert all(bool(blocks.all()) or not bool(blocks.any()) for blocks in by_cluster)
    assert 0 < sum(bool(blocks.all()) for blocks in by_cluster) < 16
    assert (noise(weight, 1.0) != weight).reshape(32, 8, 4).any(-1).all()


def test_a_refresh_spends_no_random_number_and_repeats() -> None:
    weight = a_weight(16, 32)
    before = torch.get_rng_state()
    one, other = (learnt(ExactNoise(weight, Table(4, 8)), weight)(weight, 1.0) for _ in range(2))
    assert torch.equal(one, other)
    learnt(ExactNoise(weight, Table(4, 8)), weight)
    assert torch.equal(torch.get_rng_state(), before)
