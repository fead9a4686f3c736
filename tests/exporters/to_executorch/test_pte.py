from __future__ import annotations

from hashlib import sha256

import pytest
from qn_deploy.exporters.to_executorch.pte import backends, named_data, to_stock, to_tables
from qn_deploy.exporters.to_executorch.table_blob import MAGIC

from qn_deploy.errors import ExportError, InputError


def test_xnnpack_stores_each_weight_under_the_key_of_its_blob(lowered) -> None:
    # Linear, grouped 1x1, 3x3 and depthwise, int8 and float32: stored_layout has to agree with XNNPACK's serializer on all of them.
    assert len(lowered.tables) == 4
    assert lowered.tables.keys() <= named_data(lowered.stock).keys()


def test_to_tables_stores_blobs_and_renames_the_backend(lowered) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    assert {key: data for key, data in named_data(pte).items() if data.startswith(MAGIC)} == lowered.tables
    assert (backends(lowered.stock), backends(pte)) == ({"XnnpackBackend"}, {"QnXnnpackBackend"})
    saved = sum(len(named_data(lowered.stock)[key]) - len(blob) for key, blob in lowered.tables.items())
    assert len(pte) <= len(lowered.stock) - saved + 128 * len(lowered.tables)  # segments start at multiples of 128


def test_to_stock_gives_the_stock_program_back_byte_for_byte(lowered) -> None:
    assert to_stock(to_tables(lowered.stock, lowered.tables)) == lowered.stock == to_stock(lowered.stock)


def test_a_program_without_any_of_the_constants_stays_as_it_is(lowered) -> None:
    assert to_tables(lowered.stock, {sha256(b"another").hexdigest(): b"blob"}) is lowered.stock


def test_a_table_of_another_constant_is_refused(lowered) -> None:
    first, second, *_ = lowered.tables
    with pytest.raises(ExportError, match="does not match its key"):
        to_tables(lowered.stock, {first: lowered.tables[second]})


def test_tables_are_not_put_in_twice(lowered) -> None:
    with pytest.raises(ExportError, match="given tables before"):
        to_tables(to_tables(lowered.stock, lowered.tables), lowered.tables)


def test_a_damaged_table_is_refused(lowered) -> None:
    pte = to_tables(lowered.stock, lowered.tables)
    version = pte.index(MAGIC) + 16
    with pytest.raises(InputError, match="version 9"):
        to_stock(pte[:version] + b"\x09" + pte[version + 1 :])


@pytest.mark.parametrize("data", [b"", b"hello", bytes(range(256)) * 2], ids=["empty", "text", "noise"])
def test_what_is_no_program_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="no ExecuTorch program"):
        named_data(data)
