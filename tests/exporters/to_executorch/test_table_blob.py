from __future__ import annotations

import random
import struct
from hashlib import sha256
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.errors import InputError
from qn_deploy.weights.compressed import PQWeight, codes_dtype
from qn_deploy.weights.table_blob import MAGIC, DType, Layout, dense, named_blobs, pack, stored_layouts, unpack

# rows 2, inner 1, spatial 4: blocks of 2, so 2 block columns, each with its own codebook of 3 centroids
SMALL = PQWeight(
    codes=torch.tensor([[0, 2], [1, 0]], dtype=torch.uint8),
    centroids=torch.tensor([[[1, 2], [3, 4], [5, 6]], [[-1, -2], [-3, -4], [-5, -6]]], dtype=torch.int8),
    scale=torch.tensor([0.5, 2.0]),
    shape=(2, 1, 2, 2),
)
SMALL_BLOB = bytes.fromhex(
    "89 51 4e 54 41 42 4c 45 85 f3 ed 1b 71 4d 7a 2f"  # magic
    "02 00  02  02  01  00 00 00"  # version 2, float32, SIO, one table, reserved
    "02 00 00 00  01 00 00 00  04 00 00 00  02 00 00 00"  # rows, inner, spatial, block size
    "00 00 00 3f  00 00 00 40"  # scales
    "02 00 00 00  03 00 00 00"  # codebooks, centroids
    "01 02 03 04 05 06  ff fe fd fc fb fa"  # centroids
    "20 01"  # codes 0, 2, 1, 0: two a byte, the first in the low half
)
# 3 x 3 kernels of 4 channels, a block each
KERNELS = PQWeight(
    torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 0, 2]], dtype=torch.uint8),
    torch.arange(-18, 18, dtype=torch.int8).reshape(1, 4, 9),
    torch.tensor([0.5, 1, 2]),
    (3, 4, 9),
)
# one row of 3 weights, blocks of 1: a table of 300 centroids, the first and last of which differ from 0, and a residual of 2
PAIR = PQWeight(
    codes=torch.tensor([[299, 0, 256]], dtype=torch.int32).to(torch.uint16),
    centroids=torch.tensor([100, *[0] * 298, -100], dtype=torch.int8).reshape(1, 300, 1),
    scale=torch.ones(1),
    shape=(1, 3),
    residual=PQWeight(torch.tensor([[1, 0, 1]], dtype=torch.uint8), torch.tensor([[[50], [-7]]], dtype=torch.int8), torch.ones(1), (1, 3)),
)
PAIR_BLOB = bytes.fromhex(
    "89 51 4e 54 41 42 4c 45 85 f3 ed 1b 71 4d 7a 2f  02 00  01  00  02  00 00 00"
    "01 00 00 00  03 00 00 00  01 00 00 00  01 00 00 00"
    "01 00 00 00  2c 01 00 00" + "64" + "00" * 298 + "9c" + "2b 01  00 00  00 01"  # 16-bit codes
    "01 00 00 00  02 00 00 00  32 f9  01 01"  # 4-bit codes 1, 0, 1 and half a byte of zero
)


@st.composite
def tables(draw: st.DrawFn) -> PQWeight:
    rows, inner, spatial = draw(st.integers(1, 5)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    row = inner * spatial
    block = draw(st.sampled_from([d for d in range(1, row + 1) if row % d == 0]))
    columns = row // block
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    scale = torch.rand(draw(st.sampled_from([1, rows])), generator=generator) + 1e-6
    weight: PQWeight | None = None
    for _ in range(draw(st.integers(1, 2))):
        books, size = draw(st.integers(1, columns)), draw(st.sampled_from([1, 2, 16, 17, 256, 257]))
        codes = torch.randint(0, size, (rows, columns), generator=generator).to(codes_dtype(size))
        centroids = torch.randint(-127, 128, (books, size, block), dtype=torch.int8, generator=generator)
        weight = PQWeight(codes, centroids, scale, (rows, inner, spatial), residual=weight)
    assert weight is not None
    return weight


def read_in_python(blob: bytes) -> bytes | None:
    try:
        return unpack(blob)
    except InputError:
        return None


def test_pack_writes_the_bytes_of_the_specification() -> None:
    assert pack(SMALL, Layout.SIO, DType.FLOAT32) == SMALL_BLOB
    assert pack(PAIR, Layout.OIS, DType.INT8) == PAIR_BLOB


def test_unpack_reads_the_bytes_of_the_specification() -> None:
    rows = [[0.5 * v for v in (1, 2, -5, -6)], [2.0 * v for v in (3, 4, -1, -2)]]
    assert unpack(SMALL_BLOB) == struct.pack("<8f", *(rows[o][p] for p in range(4) for o in range(2)))
    assert unpack(PAIR_BLOB) == struct.pack("<3b", -107, 127, -7)  # 100 + 50 saturates


@given(table=tables(), layout=st.sampled_from(Layout), dtype=st.sampled_from(DType))
@settings(max_examples=40, deadline=None)
def test_a_blob_holds_the_weight_in_its_layout(table: PQWeight, layout: Layout, dtype: DType) -> None:
    weight = table.int8() if dtype is DType.INT8 else table.dequantize()
    axes = {"O": 0, "I": 1, "S": 2}
    expected = weight.permute([axes[letter] for letter in layout.name]).contiguous().numpy().tobytes()
    assert unpack(pack(table, layout, dtype)) == expected == dense(table, layout, dtype)


def test_native_reader_expands_as_python_does(read_natively) -> None:
    blobs: list[bytes] = [SMALL_BLOB, PAIR_BLOB, *(pack(KERNELS, layout, dtype) for layout, dtype in product(Layout, DType))]

    @given(table=tables(), layout=st.sampled_from(Layout), dtype=st.sampled_from(DType))
    @settings(max_examples=150, deadline=None, database=None)
    def collect(table: PQWeight, layout: Layout, dtype: DType) -> None:
        blobs.append(pack(table, layout, dtype))

    collect()
    assert read_natively(blobs) == [unpack(blob) for blob in blobs]


def test_native_reader_refuses_what_python_refuses(read_natively) -> None:
    rng = random.Random(0)
    blobs = [blob[:n] for blob in (SMALL_BLOB, PAIR_BLOB) for n in range(len(blob))]
    for _ in range(3000):
        blob = bytearray(pack(rng.choice([SMALL, SMALL, PAIR]), rng.choice(list(Layout)), rng.choice(list(DType))))
        for _ in range(rng.choice([1, 1, 2, 3])):
            blob[rng.randrange(16, len(blob))] = rng.choice([0, 1, 2, 3, 4, 8, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        blobs.append(bytes(blob))
    for field in (24, 28, 32, 36, 48, 52):  # sizes whose products overflow 32 and 64 bits
        for size in (0, 1, 2**16, 2**31, 2**32 - 1):
            blobs.append(SMALL_BLOB[:field] + struct.pack("<I", size) + SMALL_BLOB[field + 4 :])
    huge = 2**32 - 1
    blobs += [SMALL_BLOB[:18] + b"\1" + SMALL_BLOB[19:24] + struct.pack("<6I", *[huge] * 4, *sizes) for sizes in ((huge, huge), (1, 2**16))]
    # One rule broken, the length right for it: more codebooks than columns, K = 65537, blocks across rows, no rows at all.
    for sizes, body in (
        ((2, 1, 4, 2, 3, 2), 12 + 2),
        ((2, 1, 4, 2, 1, 65537), 2 * 65537 + 8),
        ((2, 1, 4, 3, 1, 1), 3 + 1),
        ((0, 1, 4, 2, 1, 1), 2),
    ):
        blobs.append(SMALL_BLOB[:18] + b"\1" + SMALL_BLOB[19:24] + struct.pack("<6I", *sizes) + bytes(body))
        assert read_in_python(blobs[-1]) is None
    native, python = read_natively(blobs), [read_in_python(blob) for blob in blobs]
    assert native == python
    assert 100 < sum(result is None for result in python) < len(blobs) - 100  # both verdicts occur


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda b: b[:-1], "header promises codes up to byte 70", id="short"),
        pytest.param(lambda b: b + b"\0", "71 bytes; its header promises 70", id="long"),
        pytest.param(lambda b: b[:30], "no table blob", id="half a header"),
        pytest.param(lambda b: b"\x88" + b[1:], "no table blob", id="magic"),
        pytest.param(lambda b: b[:16] + b"\1" + b[17:], "version 1", id="version"),
        pytest.param(lambda b: b[:18] + b"\3" + b[19:], "dtype 3", id="dtype"),
        pytest.param(lambda b: b[:19] + b"\4" + b[20:], "layout 4", id="layout"),
        pytest.param(lambda b: b[:20] + b"\3" + b[21:], "3 tables", id="tables"),
        pytest.param(lambda b: b[:20] + b"\2" + b[21:], "promises a table up to byte 78", id="a table that is not there"),
        pytest.param(lambda b: b[:21] + b"\1" + b[22:], "reserved 010000", id="reserved"),
        pytest.param(lambda b: b[:36] + b"\3" + b[37:], "blocks of 3", id="block does not divide"),
        pytest.param(lambda b: b[:48] + b"\3" + b[49:], "3 codebooks", id="more codebooks than columns"),
        pytest.param(lambda b: b[:52] + b"\1\0\1" + b[55:], "65537 centroids", id="too many centroids"),
        pytest.param(lambda b: b[:40] + bytes(4) + b[44:], "scale", id="zero scale"),
        pytest.param(lambda b: b[:56] + b"\x80" + b[57:], "-128", id="centroid -128"),
        pytest.param(lambda b: b[:-1] + b"\3", "code 3", id="code past the table"),
        pytest.param(lambda b: PAIR_BLOB[:-1] + b"\x11", "half byte after 3 values", id="half a byte that nothing fills"),
    ],
)
def test_a_damaged_blob_is_refused_by_name(change: object, reason: str) -> None:
    assert callable(change)
    with pytest.raises(InputError, match=reason):
        unpack(change(SMALL_BLOB))


@pytest.mark.parametrize(
    ("shape", "layouts"),
    [
        ((8, 16), (Layout.OIS,)),
        ((8, 16, 1, 1), (Layout.OIS, Layout.ISO)),
        ((8, 16, 3, 3), (Layout.OSI, Layout.ISO)),
        ((8, 1, 3, 3), (Layout.SIO, Layout.ISO)),
        ((8, 1, 1, 1), (Layout.OIS, Layout.ISO)),
    ],
)
def test_stored_layouts(shape: tuple[int, ...], layouts: tuple[Layout, ...]) -> None:
    assert stored_layouts(shape) == layouts


def test_named_blobs_are_found_by_the_digest_of_the_dense_bytes_and_only_where_smaller() -> None:
    codes = torch.zeros(64, 32, dtype=torch.uint8)
    large = PQWeight(codes, torch.ones(1, 2, 8, dtype=torch.int8), torch.ones(1), (64, 256))
    assert named_blobs({"large": large, "small": SMALL}, DType.INT8) == {
        sha256(large.int8().numpy().tobytes()).hexdigest(): pack(large, Layout.OIS, DType.INT8)
    }


def test_the_magic_is_derived_not_chosen() -> None:
    assert b"\x89QNTABLE" + sha256(b"qn-deploy table blob").digest()[:8] == MAGIC
