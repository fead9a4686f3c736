from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qn_deploy.errors import InputError
from qn_deploy.recipe import Int4, Int8, Table
from qn_deploy.recipe.methods import code_bits


@pytest.mark.parametrize(
    ("block", "size", "books", "residual"), [(0, 256, 1, 0), (4, 1, 1, 0), (4, 65_537, 1, 0), (4, 2, 0, 0), (4, 2, 1, 1)]
)
def test_sizes_out_of_range_are_refused(block: int, size: int, books: int, residual: int) -> None:
    with pytest.raises(InputError, match=f"of {size} centroids .*; expected 2 to 65,536 centroids, blocks and codebooks of 1 or more"):
        Table(block, size, books, residual)


def test_ranges_go_by_name() -> None:
    assert (Int8("minmax").range, Int4().range) == ("minmax", None)
    with pytest.raises(InputError, match="'best' is none of minmax, least_squares"):
        Int4("best")  # type: ignore[arg-type]


def test_a_code_takes_4_8_or_16_bits() -> None:
    assert [code_bits(size) for size in (2, 16, 17, 256, 257, 65_536)] == [4, 4, 8, 8, 16, 16]


@given(st.integers(1, 2000), st.integers(1, 200), st.integers(1, 16), st.sampled_from([2, 16, 256, 2048]))
def test_codebooks_take_five_percent_of_the_codes_or_there_is_one(out: int, columns: int, block: int, size: int) -> None:
    table = Table(block, size)
    books = table.books(out, columns)
    codes = out * columns * code_bits(size) / 8
    assert 1 <= books <= columns
    if books > 1:
        assert books * size * block <= 0.05 * codes + 1
    if books < columns:
        assert (books + 1) * size * block > 0.05 * codes


def test_a_recipe_may_give_the_codebooks() -> None:
    assert Table(4, 16, codebooks=12).books(64, 64) == 12
    assert Table(4, 16, codebooks=12).books(64, 8) == 8


def test_a_table_pays_where_it_is_smaller_than_int8() -> None:
    assert Table(8).pays(1024, 1024)
    assert Table(9).pays(64, 64 * 9) and not Table(9).pays(4, 9)
    assert Table(1, 16).pays(64, 64) and not Table(1, 17).pays(64, 64)  # half a byte a weight, or a whole one
    assert not Table(2, 256, residual=256).pays(512, 512)
