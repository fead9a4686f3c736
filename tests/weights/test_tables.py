from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.errors import CompressionError
from qn_deploy.recipe import Table
from qn_deploy.weights.tables import groups, table_from_weight


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(weight: Tensor, approximation: Tensor) -> float:
    """Squared error relative to the weight."""
    return float((weight - approximation).square().sum() / weight.square().sum())


def test_rows_of_one_direction_share_one_centroid() -> None:
    # Both rows are multiples of (4, -3, 0, 0): with the scale split off, the two distinct blocks are all there is.
    table = table_from_weight(torch.tensor([[4.0, -3.0, 0.0, 0.0], [400.0, -300.0, 0.0, 0.0]]), Table(2, 256))
    assert sorted(table.centroids[0].tolist()) == [[0, 0], [127, -95]]
    assert table.codes[0].tolist() == table.codes[1].tolist()
    torch.testing.assert_close(table.dequantize()[1], torch.tensor([400.0, -300.0, 0.0, 0.0]), rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(16, 8), (6, 4, 3, 3), (5, 36, 1, 1)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_shapes_and_scales(shape: tuple[int, ...], per_channel: bool) -> None:
    weight = random(*shape)
    table = table_from_weight(weight, Table(4, 16), per_channel=per_channel)
    assert table.shape == shape and table.dequantize().shape == shape
    assert table.scale.shape == (shape[0] if per_channel else 1,)
    assert torch.unique(table.codes).tolist() == list(range(table.centroids.shape[1]))
    assert int(table.centroids.abs().max()) <= 127
    assert error(weight, table.dequantize()) < 0.6


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 4), st.integers(2, 20), st.floats(-30, 30), st.integers(0, 9))
def test_a_larger_weight_is_the_same_table_with_a_larger_scale(out: int, columns: int, d: int, k: int, power: float, seed: int) -> None:
    weight, factor = random(out, columns * d, seed=seed), 2.0 ** int(power)
    small, large = table_from_weight(weight, Table(d, k)), table_from_weight(weight * factor, Table(d, k))
    assert torch.equal(small.int8(), large.int8())
    torch.testing.assert_close(large.scale, small.scale * factor)


def test_codes_point_to_the_nearest_rounded_centroid() -> None:
    weight = random(32, 32)
    table = table_from_weight(weight, Table(4, 16))
    blocks = (weight / table.scale[:, None]).reshape(-1, 4)
    distances = torch.cdist(blocks, table.centroids[0].float())
    torch.testing.assert_close(distances.gather(1, table.codes.long().reshape(-1, 1))[:, 0], distances.amin(1), rtol=1e-4, atol=1e-3)


def test_more_centroids_are_closer() -> None:
    weight = random(64, 64)
    errors = [error(weight, table_from_weight(weight, Table(4, k)).dequantize()) for k in (4, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.15


@given(st.integers(1, 60), st.integers(1, 60))
def test_each_block_column_has_the_codebook_of_the_papers_formula(columns: int, books: int) -> None:
    books = min(columns, books)
    found = [book for book, chosen in enumerate(groups(columns, books)) for _ in range(columns)[chosen]]
    assert found == [column * books // columns for column in range(columns)]


def test_local_codebooks_learn_what_is_local() -> None:
    # Columns of quite another kind: one codebook has to share its four centroids among both.
    weight = torch.cat([random(64, 8), 0.01 * random(64, 8, seed=1)], 1)
    shared, local = (table_from_weight(weight, Table(2, 4, codebooks=books)) for books in (1, 2))
    assert local.centroids.shape == (2, 4, 2)
    assert error(weight[:, 8:], local.dequantize()[:, 8:]) < 0.6 < error(weight[:, 8:], shared.dequantize()[:, 8:])


def test_a_codebook_with_fewer_blocks_than_centroids_is_padded() -> None:
    weight = torch.tensor([[1.0, 1.0, 3.0], [1.0, 2.0, 3.0], [1.0, 5.0, 3.0]])
    table = table_from_weight(weight, Table(1, 4, codebooks=3), per_channel=False)
    assert table.centroids.shape == (3, 3, 1)  # 1; 1, 2, 5; 3
    torch.testing.assert_close(table.dequantize(), weight, rtol=0, atol=0.02)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.sampled_from([1, 3]))
def test_a_residual_table_leaves_less(seed: int, books: int) -> None:
    weight = random(40, 24, seed=seed)
    plain = table_from_weight(weight, Table(4, 8, codebooks=books))
    both = table_from_weight(weight, Table(4, 8, codebooks=books, residual=8))
    assert torch.equal(both.codes, plain.codes) and both.residual is not None
    assert error(weight, both.dequantize()) < error(weight, plain.dequantize())
    assert error(both.int8().float(), (both.dequantize() / both.scale[:, None])) < 1e-9


def test_2048_centroids_have_codes_of_16_bits() -> None:
    weight = random(128, 128)
    table = table_from_weight(weight, Table(4, 2048))
    assert table.codes.dtype == torch.uint16 and table.centroids.shape[1] <= 2048
    assert error(weight, table.dequantize()) < error(weight, table_from_weight(weight, Table(4, 256)).dequantize())


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dead", [0.0, 1e-30])
def test_a_dead_row_is_zero_with_an_ordinary_scale(dead: float, per_channel: bool) -> None:
    weight = random(20, 16)
    weight[[3, 7]] *= dead
    table = table_from_weight(weight, Table(4, 8), per_channel=per_channel)
    assert not table.dequantize()[[3, 7]].any()
    assert table.scale.min() > 1e-3 and table.centroids.shape[1] <= 8
    assert error(weight, table.dequantize()) < 0.7


def test_a_weight_of_zeros_is_a_table_of_one_zero() -> None:
    table = table_from_weight(torch.zeros(4, 6), Table(3))
    assert table.centroids.tolist() == [[[0, 0, 0]]] and table.codes.sum() == 0 and not table.dequantize().any()


@pytest.mark.parametrize(
    ("weight", "method", "says"),
    [
        (torch.ones(2, 9), Table(4), "blocks of 4 weights do not divide a row of 9"),
        (torch.full((2, 8), float("nan")), Table(4), "NaN or infinity"),
    ],
)
def test_what_makes_no_table_is_refused(weight: Tensor, method: Table, says: str) -> None:
    with pytest.raises(CompressionError, match=says):
        table_from_weight(weight, method)


def test_the_weight_is_not_changed() -> None:
    weight = random(8, 8)
    weight[2] = 0.0
    before = weight.clone()
    table_from_weight(weight, Table(4, 4))
    assert torch.equal(weight, before)
