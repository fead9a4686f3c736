from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.errors import CompressionError
from qn_deploy.recipe import Int4
from qn_deploy.weights.compressed import IntWeight, PQWeight


def a_table(**changes: Any) -> PQWeight:
    """Two rows of two blocks of two weights; block column 0 reads codebook 0, column 1 codebook 1."""
    fields: dict[str, Any] = {
        "codes": torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8),
        "centroids": torch.tensor([[[1, 2], [3, 4]], [[5, 6], [-127, 127]]], dtype=torch.int8),
        "scale": torch.tensor([0.5, 2.0]),
        "shape": (2, 4),
    }
    return PQWeight(**{**fields, **changes})


def test_a_table_decodes_to_these_bytes() -> None:
    table = a_table()
    assert table.rows.tolist() == [[0, 3], [1, 2]]
    assert table.int8().tolist() == [[1, 2, -127, 127], [3, 4, 5, 6]]
    assert table.dequantize().tolist() == [[0.5, 1.0, -63.5, 63.5], [6.0, 8.0, 10.0, 12.0]]
    assert table.int8().dtype == torch.int8 and table.rows.dtype == torch.int32
    assert (table.block_size, table.nbytes) == (2, 2 + 8 + 2 * 4)  # codes of 4 bits


def test_one_scale_serves_every_row() -> None:
    assert a_table(scale=torch.tensor([2.0])).dequantize().tolist() == [[2.0, 4.0, -254.0, 254.0], [6.0, 8.0, 10.0, 12.0]]


def test_codebooks_that_do_not_divide_the_columns_follow_the_formula() -> None:
    codes = torch.zeros(1, 5, dtype=torch.uint8)
    table = PQWeight(codes, torch.tensor([[[7]], [[9]]], dtype=torch.int8), torch.ones(1), (1, 5))
    assert table.int8().tolist() == [[7, 7, 7, 9, 9]]  # i*2 // 5


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.data())
def test_every_block_is_scale_times_its_centroid(out: int, columns: int, books: int, d: int, data: st.DataObject) -> None:
    books = min(books, columns)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    codes = torch.randint(0, 5, (out, columns), generator=generator).to(torch.uint8)
    centroids = torch.randint(-127, 128, (books, 5, d), generator=generator).to(torch.int8)
    scale = torch.rand(out, generator=generator) + 0.1
    weight = PQWeight(codes, centroids, scale, (out, columns * d)).dequantize()
    for o in range(out):
        for i in range(columns):
            expected = scale[o] * centroids[i * books // columns, int(codes[o, i])]
            assert torch.equal(weight[o, i * d : (i + 1) * d], expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"codes": torch.zeros(2, 2)}, r"codes into 2 centroids must be torch.uint8 \[out, B\], found torch.float32"),
        ({"centroids": torch.zeros(2, 2, dtype=torch.int8)}, r"centroids must be int8 \[G, K, d\]"),
        ({"shape": (2, 5)}, "do not fill a weight of shape"),
        ({"shape": (4, 2)}, "do not fill a weight of shape"),
        ({"codes": torch.full((2, 2), 2, dtype=torch.uint8)}, "code 2 points past the last of 2 centroids"),
        ({"centroids": torch.full((2, 2, 2), -128, dtype=torch.int8)}, "-128"),
        ({"centroids": torch.zeros(3, 2, 2, dtype=torch.int8)}, "3 codebooks"),
        ({"scale": torch.ones(3)}, r"scale must be float32 \[2\] or \[1\]"),
        ({"scale": torch.tensor([1.0, 0.0])}, "zero, negative or not finite"),
        ({"scale": torch.tensor([1.0, float("nan")])}, "zero, negative or not finite"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Tensor], says: str) -> None:
    with pytest.raises(CompressionError, match=says):
        a_table(**changes)


def test_int8_puts_each_rows_largest_at_127() -> None:
    weight = IntWeight.from_float(torch.tensor([[1.27, -0.1], [0.0, 0.0], [-254.0, 1.0]]))
    assert weight.values.tolist() == [[127, -10], [0, 0], [-127, 0]]  # 0.5 rounds to even
    assert weight.scale[1:].tolist() == [2.0, 2.0]  # a dead row has the largest row's scale
    assert (weight.nbytes, weight.shape) == (6 + 12, (3, 2))


def test_int8_per_tensor_has_one_scale() -> None:
    weight = IntWeight.from_float(torch.tensor([[1.0], [127.0]]), per_channel=False)
    assert (weight.values.tolist(), weight.scale.tolist()) == ([[1], [127]], [1.0])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3), min_size=1, max_size=4))
def test_int8_is_within_half_a_step(rows: list[list[float]]) -> None:
    weight = torch.tensor(rows)
    quantized = IntWeight.from_float(weight)
    assert ((quantized.dequantize() - weight).abs() <= quantized.scale[:, None] * 0.501).all()


def test_int8_refuses_nan_and_minus_128() -> None:
    with pytest.raises(CompressionError, match="NaN or infinity"):
        IntWeight.from_float(torch.tensor([[float("nan")]]))
    with pytest.raises(CompressionError, match=r"found torch\.int8, -128\.\.-128"):
        IntWeight(torch.tensor([[-128]], dtype=torch.int8), torch.ones(1))


def test_four_bits_are_seven_steps_each_way_and_half_a_byte_each() -> None:
    weight = IntWeight.from_float(torch.tensor([[7.0, -3.5, 0.4, 1.0, -7.0]]), method=Int4(range="minmax"))
    assert weight.values.tolist() == [[7, -4, 0, 1, -7]]
    assert weight.nbytes == 3 + 4
    with pytest.raises(CompressionError, match=r"in -7\.\.7, found torch\.int8, 0\.\.8"):
        IntWeight(torch.tensor([[0, 8]], dtype=torch.int8), torch.ones(1), bits=4)


def test_four_bits_travel_as_a_table_of_single_values() -> None:
    weight = IntWeight.from_float(torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)), method=Int4())
    table = weight.table()
    assert table.centroids.flatten().tolist() == list(range(-7, 8))
    assert torch.equal(table.int8(), weight.int8()) and torch.equal(table.scale, weight.scale)
    assert table.nbytes == weight.nbytes + 15
    with pytest.raises(CompressionError, match="8 bits need no table"):
        IntWeight.from_float(torch.ones(2, 2)).table()


@pytest.mark.parametrize(
    ("size", "dtype", "code_bytes"), [(16, torch.uint8, 3), (17, torch.uint8, 6), (256, torch.uint8, 6), (257, torch.uint16, 12)]
)
def test_codes_take_4_8_or_16_bits(size: int, dtype: torch.dtype, code_bytes: int) -> None:
    weight = PQWeight(torch.full((2, 3), size - 1).to(dtype), torch.ones(1, size, 2, dtype=torch.int8), torch.ones(2), (2, 6))
    assert weight.nbytes == code_bytes + size * 2 + 8
    assert weight.int8().tolist() == [[1] * 6] * 2
    with pytest.raises(CompressionError, match=f"codes into {size} centroids must be"):
        PQWeight(torch.zeros(2, 3, dtype=torch.int32), weight.centroids, weight.scale, (2, 6))


def test_a_residual_table_is_added_and_saturates() -> None:
    scale = torch.tensor([0.5])
    second = PQWeight(torch.tensor([[0], [1]], dtype=torch.uint8), torch.tensor([[[3, 3], [-9, 100]]], dtype=torch.int8), scale, (2, 2))
    first = PQWeight(
        torch.tensor([[1], [0]], dtype=torch.uint8), torch.tensor([[[-120, 100], [1, 2]]], dtype=torch.int8), scale, (2, 2), second
    )
    assert first.int8().tolist() == [[4, 5], [-127, 127]]
    assert first.dequantize().tolist() == [[2.0, 2.5], [-63.5, 63.5]]
    assert first.nbytes == 2 * (1 + 4) + 4
    with pytest.raises(CompressionError, match="a residual table must have the shape, block size and scale of the first"):
        PQWeight(first.codes, first.centroids, torch.tensor([0.25]), (2, 2), second)
