from __future__ import annotations

import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.errors import InputError
from qn_deploy.weights.coding import by_use, deflated, inflated, shares
from qn_deploy.weights.compressed import PQWeight
from tests.conftest import random_table

TABLE = PQWeight(
    codes=torch.tensor([[2, 0, 1], [2, 2, 1]], dtype=torch.uint8),  # two codebooks: columns 0 and 1 read the first
    centroids=torch.tensor([[[1], [2], [3]], [[4], [5], [6]]], dtype=torch.int8),
    scale=torch.ones(1),
    shape=(2, 3),
)


def test_centroids_come_in_the_order_of_their_use_in_each_codebook() -> None:
    sorted_table = by_use(TABLE)
    assert sorted_table.centroids.flatten().tolist() == [3, 1, 2, 5, 4, 6]
    assert sorted_table.codes.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert torch.equal(sorted_table.int8(), TABLE.int8())


@pytest.mark.parametrize(("size", "residual"), [(16, 0), (256, 0), (3000, 0), (256, 16)])
def test_the_order_changes_no_weight(size: int, residual: int) -> None:
    table = random_table((64, 32), 4, size, 2, residual)
    assert torch.equal(by_use(table).int8(), table.int8())


@given(arrays=st.lists(st.binary(max_size=300), min_size=1, max_size=5))
@settings(max_examples=80, deadline=None)
def test_a_stream_gives_its_arrays_back_and_each_byte_of_it_stands_for_one(arrays: list[bytes]) -> None:
    stream, joined = deflated(arrays), b"".join(arrays)
    assert zlib.decompress(stream) == joined
    if joined:
        assert inflated(stream, len(joined)) == joined
    found = shares(stream, [*map(len, arrays)])
    assert len(found) == len(arrays) and sum(found) == len(stream) and min(found) >= 0


def test_each_array_has_huffman_codes_of_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    small, wide = (torch.randint(0, top, (4096,), generator=generator, dtype=torch.uint8).numpy().tobytes() for top in (4, 255))
    stream = deflated([small, wide])
    assert len(stream) < 4096 / 4 + 4096 + 200  # 2 and 8 bits a value; with one set of codes 2.9 and 9
    for found, expected in zip(shares(stream, [4096, 4096]), (4096 / 4, 4096), strict=True):
        assert abs(found - expected) < 180


def test_rows_that_repeat_are_stored_once() -> None:
    row = torch.randint(0, 255, (512,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy().tobytes()
    assert len(deflated([row * 20])) < 800


@pytest.mark.parametrize(
    ("stream", "size", "reason"),
    [
        pytest.param(b"", 1, "0 bytes can't stand for 1", id="empty"),
        pytest.param(zlib.compress(b"ab"), 0, "can't stand for 0", id="of nothing"),
        pytest.param(zlib.compress(b"ab"), 2**32, "10 bytes can't stand for 4294967296", id="too much"),
        pytest.param(zlib.compress(b"ab")[:-1], 2, "does not end after 2 bytes", id="short"),
        pytest.param(zlib.compress(b"ab") + b"\0", 2, "something follows it", id="long"),
        pytest.param(zlib.compress(b"ab"), 1, "does not end after 1 bytes", id="more than promised"),
        pytest.param(zlib.compress(b"ab"), 3, "does not end after 3 bytes", id="less than promised"),
        pytest.param(zlib.compress(b"ab")[:-1] + b"\0", 2, "incorrect data check", id="checksum"),
        pytest.param(b"no stream", 9, "incorrect header", id="no stream"),
    ],
)
def test_a_damaged_stream_is_refused(stream: bytes, size: int, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        inflated(stream, size)


def test_a_block_of_nothing_ends_a_stream_as_well() -> None:
    writer = zlib.compressobj()
    stream = writer.compress(b"ab") + writer.flush(zlib.Z_FULL_FLUSH) + writer.flush()
    assert inflated(stream, 2) == b"ab"
