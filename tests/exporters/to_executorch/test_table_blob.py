from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.errors import CompressionError, InputError
from qn_deploy.weights.compressed import PQWeight, codes_dtype
from qn_deploy.weights.table_blob import MAGIC, DType, Layout, dense, is_coded, named_blobs, pack, stored_orders, unpack
from tests.conftest import random_table

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
# 4 rows in 2 groups, inner 2, spatial 2, blocks of 2: row o has the code o for its first block and 3 for its second
GROUPED = PQWeight(
    codes=torch.tensor([[0, 3], [1, 3], [2, 3], [3, 3]], dtype=torch.uint8),
    centroids=torch.tensor([[[1, 2], [3, 4], [5, 6], [7, 8]]], dtype=torch.int8),
    scale=torch.ones(1),
    shape=(4, 2, 1, 2),
)
GROUPED_BLOB = bytes.fromhex(
    "89 51 4e 54 41 42 4c 45 85 f3 ed 1b 71 4d 7a 2f  02 00  01  03  01  01 00 00"  # int8, ISO, one table, one further group
    "04 00 00 00  02 00 00 00  02 00 00 00  02 00 00 00"
    "01 00 00 00  04 00 00 00  01 02 03 04 05 06 07 08  30 31 32 33"
)
# PAIR, coded: 16-bit codes lie in two planes, and one stored block holds all
PAIR_ARRAYS = bytes.fromhex(
    "01 00 00 00  2c 01 00 00" + "64" + "00" * 298 + "9c" + "2b 00 00  01 00 01"  # low bytes of the codes, high bytes
    "01 00 00 00  02 00 00 00  32 f9  01 01"
)
CODED_PAIR_BLOB = (
    PAIR_BLOB[:16]
    + b"\3"
    + PAIR_BLOB[17:40]
    + struct.pack("<I", len(PAIR_ARRAYS))
    + bytes.fromhex("78 01  01") + struct.pack("<2H", len(PAIR_ARRAYS), len(PAIR_ARRAYS) ^ 0xFFFF) + PAIR_ARRAYS
    + struct.pack(">I", zlib.adler32(PAIR_ARRAYS))
)  # fmt: skip


def divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@st.composite
def tables(draw: st.DrawFn) -> PQWeight:
    rows, inner, spatial = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    row = inner * spatial
    block = draw(st.sampled_from(divisors(row)))
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


@st.composite
def blobs_of(draw: st.DrawFn) -> tuple[PQWeight, Layout, DType, int]:
    """What `pack` takes."""
    table = draw(tables())
    return table, draw(st.sampled_from(Layout)), draw(st.sampled_from(DType)), draw(st.sampled_from(divisors(table.shape[0])))


def read_in_python(blob: bytes) -> bytes | None:
    try:
        return unpack(blob)
    except InputError:
        return None


def test_pack_writes_the_bytes_of_the_specification() -> None:
    assert pack(SMALL, Layout.SIO, DType.FLOAT32) == SMALL_BLOB
    assert pack(PAIR, Layout.OIS, DType.INT8) == PAIR_BLOB
    assert pack(GROUPED, Layout.ISO, DType.INT8, 2) == GROUPED_BLOB


def test_unpack_reads_the_bytes_of_the_specification() -> None:
    rows = [[0.5 * v for v in (1, 2, -5, -6)], [2.0 * v for v in (3, 4, -1, -2)]]
    assert unpack(SMALL_BLOB) == struct.pack("<8f", *(rows[o][p] for p in range(4) for o in range(2)))
    assert unpack(PAIR_BLOB) == struct.pack("<3b", -107, 127, -7)  # 100 + 50 saturates
    assert unpack(CODED_PAIR_BLOB) == unpack(PAIR_BLOB)
    assert unpack(GROUPED_BLOB) == bytes([1, 3, 2, 4, 7, 7, 8, 8, 5, 7, 6, 8, 7, 7, 8, 8])  # a group of rows 0 and 1, one of rows 2 and 3


def test_a_coded_blob_is_written_by_the_specification() -> None:
    blob = pack(PAIR, Layout.OIS, DType.INT8, coded=True)
    arrays = zlib.decompress(blob[44:])
    assert blob[:44] == CODED_PAIR_BLOB[:44] and len(arrays) == len(PAIR_ARRAYS)
    assert arrays[:11] == bytes.fromhex("01 00 00 00  2c 01 00 00  64 00 9c")  # those in use first: centroids 0, 256 and 299
    assert arrays[308:] == bytes.fromhex("02 00 01  00 00 00  01 00 00 00  02 00 00 00  f9 32  10 00")  # of the residual 1 before 0
    assert is_coded(blob) and not is_coded(PAIR_BLOB) and not is_coded(b"no blob" + blob)


@st.composite
def used_unevenly(draw: st.DrawFn) -> PQWeight:
    """A table whose codes are uniform, skewed or all the same."""
    size, books, rows = draw(st.sampled_from([1, 2, 3, 15, 16, 17, 255, 256, 257, 3000])), draw(st.integers(1, 3)), draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    skew = draw(st.sampled_from([1.0, 8.0, 1e9]))
    codes = (torch.rand(rows, 6, generator=generator) ** skew * size).long().clamp_max(size - 1).to(codes_dtype(size))
    centroids = (8 * torch.randn(books, size, 2, generator=generator)).round().clamp(-127, 127).to(torch.int8)
    return PQWeight(codes, centroids, torch.rand(rows, generator=generator) + 0.5, (rows, 12))


@given(table=used_unevenly(), dtype=st.sampled_from(DType))
@settings(max_examples=60, deadline=None)
def test_a_coded_blob_holds_the_same_weight_in_no_more_bytes(table: PQWeight, dtype: DType) -> None:
    plain, coded = pack(table, Layout.OIS, dtype), pack(table, Layout.OIS, dtype, coded=True)
    assert unpack(coded) == unpack(plain)
    assert len(coded) < len(plain) if is_coded(coded) else coded == plain


def test_codes_that_are_used_unevenly_take_their_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = (256 * torch.rand(256, 64, generator=generator) ** 3).to(torch.uint8)
    table = PQWeight(codes, torch.randint(-99, 99, (1, 256, 8), dtype=torch.int8, generator=generator), torch.ones(1), (256, 512))
    share = torch.bincount(codes.flatten().long(), minlength=256).double() / codes.numel()
    bits = -(share * share.clamp_min(1e-9).log2()).sum().item() * codes.numel()
    plain, coded = pack(table, Layout.OIS, DType.INT8), pack(table, Layout.OIS, DType.INT8, coded=True)
    assert codes.numel() - bits / 8 > 1500
    assert len(plain) - len(coded) > 0.95 * (codes.numel() - bits / 8)


@given(blob=blobs_of())
@settings(max_examples=60, deadline=None)
def test_a_blob_holds_the_weight_in_its_layout_group_by_group(blob: tuple[PQWeight, Layout, DType, int]) -> None:
    table, layout, dtype, groups = blob
    weight = table.int8() if dtype is DType.INT8 else table.dequantize()
    axes = {"O": 0, "I": 1, "S": 2}
    parts = [part.permute([axes[letter] for letter in layout.name]).contiguous().numpy().tobytes() for part in weight.chunk(groups)]
    assert unpack(pack(table, layout, dtype, groups)) == b"".join(parts) == dense(table, layout, dtype, groups)


@pytest.mark.parametrize("groups", [0, 3, 2**24 + 1])
def test_rows_that_are_in_no_such_groups_are_refused(groups: int) -> None:
    with pytest.raises(CompressionError, match=f"4 rows in {groups} groups"):
        pack(GROUPED, Layout.ISO, DType.INT8, groups)


def test_native_reader_expands_as_python_does(read_natively) -> None:
    blobs = [
        SMALL_BLOB,
        PAIR_BLOB,
        CODED_PAIR_BLOB,
        GROUPED_BLOB,
        *(pack(KERNELS, *form, groups) for *form, groups in product(Layout, DType, (1, 3))),
    ]

    @given(blob=blobs_of())
    @settings(max_examples=200, deadline=None, database=None)
    def collect(blob: tuple[PQWeight, Layout, DType, int]) -> None:
        blobs.append(pack(*blob))

    @given(table=used_unevenly(), dtype=st.sampled_from(DType))
    @settings(max_examples=60, deadline=None, database=None)
    def collect_coded(table: PQWeight, dtype: DType) -> None:
        blobs.append(pack(table, Layout.OIS, dtype, coded=True))

    collect()
    collect_coded()
    assert sum(map(is_coded, blobs)) > 10
    assert read_natively(blobs) == [unpack(blob) for blob in blobs]


def test_native_reader_refuses_what_python_refuses(read_natively) -> None:
    rng = random.Random(0)
    blobs = [blob[:n] for blob in (SMALL_BLOB, PAIR_BLOB, GROUPED_BLOB) for n in range(len(blob))]
    for _ in range(3000):
        table = rng.choice([SMALL, SMALL, PAIR, GROUPED])
        blob = bytearray(pack(table, rng.choice(list(Layout)), rng.choice(list(DType)), rng.choice(divisors(table.shape[0]))))
        for _ in range(rng.choice([1, 1, 2, 3])):
            blob[rng.randrange(16, len(blob))] = rng.choice([0, 1, 2, 3, 4, 8, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        blobs.append(bytes(blob))
    for field in (24, 28, 32, 36, 48, 52):  # sizes whose products overflow 32 and 64 bits
        for size in (0, 1, 2**16, 2**31, 2**32 - 1):
            blobs.append(SMALL_BLOB[:field] + struct.pack("<I", size) + SMALL_BLOB[field + 4 :])
    for groups in range(1, 7):  # of 4 rows
        blobs.append(GROUPED_BLOB[:21] + (groups - 1).to_bytes(3, "little") + GROUPED_BLOB[24:])
        blobs.append(GROUPED_BLOB[:21] + (groups * 2**8 - 1).to_bytes(3, "little") + GROUPED_BLOB[24:])
        blobs.append(GROUPED_BLOB[:21] + (groups * 2**16 - 1).to_bytes(3, "little") + GROUPED_BLOB[24:])
    blobs += damaged_streams(rng)
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


def damaged_streams(rng: random.Random) -> list[bytes]:
    """A coded blob cut off anywhere, with flipped bits, and with arrays that break a rule in a stream that does not."""
    good = pack(PAIR, Layout.OIS, DType.INT8, coded=True)
    blobs = [good[:n] for n in range(40, len(good))]
    for blob in (good, CODED_PAIR_BLOB):
        for _ in range(500):
            at = rng.randrange(16, len(blob))
            blobs.append(blob[:at] + bytes([blob[at] ^ 1 << rng.randrange(8)]) + blob[at + 1 :])
    for _ in range(500):
        arrays = bytearray(PAIR_ARRAYS)
        arrays[rng.choice([*range(9), *range(308, len(arrays))])] = rng.choice([0, 1, 2, 0x7F, 0x80, 0xFF])
        blobs.append(recoded(bytes(arrays[: rng.choice([len(arrays), len(arrays), rng.randrange(len(arrays))])])))
    blobs += [recoded(PAIR_ARRAYS, length) for length in (0, 1, len(PAIR_ARRAYS) - 1, len(PAIR_ARRAYS) + 1, 2**31, 2**32 - 1)]
    return blobs


def recoded(arrays: bytes, length: int | None = None) -> bytes:
    """PAIR's header before other arrays, which have this length or are said to."""
    return CODED_PAIR_BLOB[:40] + struct.pack("<I", len(arrays) if length is None else length) + zlib.compress(arrays)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda b: b[:42], "42 bytes; a coded one has a header of 44", id="half a header"),
        pytest.param(lambda b: b[:-1], "does not end after 326 bytes", id="short"),
        pytest.param(lambda b: b + b"\0", "or something follows it", id="long"),
        pytest.param(lambda b: b[:60] + b"\x41" + b[61:], "zlib stream: .* incorrect data check", id="flipped"),
        pytest.param(lambda b: b[:40] + b"\xff" * 4 + b[44:], "of 337 bytes can't stand for 4294967295", id="too long a promise"),
        pytest.param(lambda b: recoded(PAIR_ARRAYS, 325), "does not end after 325 bytes", id="too short a promise"),
        pytest.param(lambda b: recoded(PAIR_ARRAYS[:-1]), "325 bytes; its header promises codes up to byte 326", id="codes missing"),
        pytest.param(lambda b: recoded(PAIR_ARRAYS + b"\0"), "327 bytes; its header promises 326", id="codes left"),
        pytest.param(lambda b: recoded(PAIR_ARRAYS.replace(b"\x2b", b"\x2c")), "code 300", id="code past the table"),
    ],
)
def test_a_damaged_stream_is_refused_by_name(change: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        unpack(change(CODED_PAIR_BLOB))


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
        pytest.param(lambda b: b[:21] + b"\2" + b[22:], "2 rows in 3 groups", id="groups that do not divide the rows"),
        pytest.param(lambda b: b[:23] + b"\1" + b[24:], "2 rows in 65537 groups", id="more groups than rows"),
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
    ("shape", "transposed", "orders"),
    [
        ((8, 16), (), ((Layout.OIS, 1),)),
        ((8, 16, 1, 1), (), ((Layout.OIS, 1),)),
        ((8, 16, 3, 3), (), ((Layout.OSI, 1),)),
        ((8, 1, 3, 3), (), ((Layout.SIO, 1),)),
        ((8, 1, 1, 1), (), ((Layout.OIS, 1),)),
        ((8, 16, 1, 1), (1,), ((Layout.OIS, 1), (Layout.ISO, 1))),
        ((8, 16, 3), (2, 4), ((Layout.OSI, 1), (Layout.ISO, 2), (Layout.ISO, 4))),
        ((8, 2, 3, 3), (8,), ((Layout.OSI, 1), (Layout.OIS, 1))),
    ],
)
def test_stored_orders(shape: tuple[int, ...], transposed: tuple[int, ...], orders: tuple[tuple[Layout, int], ...]) -> None:
    assert stored_orders(shape, transposed) == orders


def test_one_row_a_group_is_the_order_of_torch() -> None:
    assert dense(GROUPED, Layout.ISO, DType.INT8, 4) == dense(GROUPED, Layout.OIS, DType.INT8)


def test_named_blobs_are_found_by_the_digest_of_the_dense_bytes_and_only_where_smaller() -> None:
    large = random_table((64, 256), 8, per_row=False)
    assert named_blobs(large, DType.INT8) == {sha256(large.int8().numpy().tobytes()).hexdigest(): pack(large, Layout.OIS, DType.INT8)}
    assert named_blobs(SMALL, DType.INT8) == {}
    skewed = replace(large, codes=large.codes % 3)
    (blob,) = named_blobs(skewed, DType.INT8, coded=True).values()
    assert blob == pack(skewed, Layout.OIS, DType.INT8, coded=True) and is_coded(blob)


def test_a_weight_has_a_blob_for_each_transposed_convolution_that_reads_it() -> None:
    kernels, orders = random_table((64, 64, 2, 2), 4), ((Layout.OSI, 1), (Layout.ISO, 2), (Layout.ISO, 8))
    blobs = named_blobs(kernels, DType.INT8, (2, 8))
    assert blobs == {sha256(unpack(blob)).hexdigest(): blob for blob in (pack(kernels, layout, DType.INT8, n) for layout, n in orders)}


def test_the_magic_is_derived_not_chosen() -> None:
    assert b"\x89QNTABLE" + sha256(b"qn-deploy table blob").digest()[:8] == MAGIC
