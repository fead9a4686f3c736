from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qn_deploy.errors import CompressionError
from qn_deploy.recipe import Int4
from qn_deploy.weights.compressed import IntWeight, PQWeight, codes_dtype
from qn_deploy.weights.packing import as_table, code_pairs, code_rows, pack_halves, row_offsets, unpack_halves


def table(codes: list[list[int]], size: int, books: int = 1) -> PQWeight:
    stored = torch.tensor(codes, dtype=torch.int32).to(codes_dtype(size))
    centroids = (torch.arange(books * size) % 127).to(torch.int8).reshape(books, size, 1)
    return PQWeight(stored, centroids, torch.ones(1), (len(codes), len(codes[0])))


def test_two_share_a_byte_the_first_in_the_low_half() -> None:
    packed = pack_halves(torch.tensor([[1, 2, 3], [10, 15, 0]], dtype=torch.uint8))
    assert bytes(packed.tolist()) == bytes.fromhex("21 a3 0f")
    assert bytes(pack_halves(torch.tensor([-1, 7, -7], dtype=torch.int8)).tolist()) == bytes.fromhex("7f 09")  # two's complement


@given(st.lists(st.integers(0, 15), max_size=9))
def test_what_is_packed_comes_back(values: list[int]) -> None:
    packed = pack_halves(torch.tensor(values, dtype=torch.uint8))
    assert len(packed) == -(-len(values) // 2)
    assert unpack_halves(packed, len(values)).tolist() == values


def test_bytes_that_do_not_fit_are_refused() -> None:
    packed = torch.tensor([0x21, 0x43], dtype=torch.uint8)
    with pytest.raises(CompressionError, match="6 values of 4 bits take 3 bytes uint8, found 2"):
        unpack_halves(packed, 6)
    with pytest.raises(CompressionError, match="half byte after 3 values of 4 bits is not zero"):
        unpack_halves(packed, 3)


@pytest.mark.parametrize(
    ("codes", "size", "rows", "dtype"),
    [
        ([[1, 2], [3, 15]], 16, [[0x21], [0xF3]], torch.uint8),
        ([[1, 2, 3]], 16, [[1, 2, 3]], torch.uint8),  # an odd row would not end with its byte
        ([[1, 200]], 256, [[1, 200]], torch.uint8),
        ([[0, 40_000]], 50_000, [[-32_768, 7232]], torch.int16),
    ],
)
def test_rows_as_an_embedding_looks_them_up(codes: list[list[int]], size: int, rows: list[list[int]], dtype: torch.dtype) -> None:
    weight = table(codes, size)
    found = code_rows(weight)
    assert (found.tolist(), found.dtype) == (rows, dtype)
    looked_up = code_pairs()[found.int()].flatten(-2) if found.shape != weight.codes.shape else found
    assert torch.equal(looked_up.int() + row_offsets(weight), weight.rows)


def test_offsets_lead_to_the_codebook_of_a_column() -> None:
    assert row_offsets(table([[0, 0, 0, 0]], 16, books=2)).tolist() == [0, 0, 16, 16]
    assert row_offsets(table([[0, 0]], 300, books=2)).tolist() == [32_768, 33_068]


def test_only_int8_is_no_table() -> None:
    assert as_table(IntWeight.from_float(torch.ones(2, 2))) is None
    four = IntWeight.from_float(torch.tensor([[1.0, -2.0]]), method=Int4())
    held = as_table(four)
    assert held is not None and torch.equal(held.int8(), four.int8())
    assert as_table(held) is held
