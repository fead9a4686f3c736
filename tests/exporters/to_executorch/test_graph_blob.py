from __future__ import annotations

import random
import struct
import tracemalloc
import zlib
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch.graph_blob import LIMIT, MAGIC, deflate, inflate, is_blob

GRAPH = b"key" * 50
SMALL_BLOB = bytes.fromhex(
    "89 51 4e 47 52 41 50 48 d3 67 6b bc 7d 73 ae 94"  # magic
    "01 00 00 00  96 00 00 00"  # version 1, 150 bytes
    "78 da cb 4e ad cc 1e 7c 08 00 f2 5f 40 43"  # zlib: header, deflate, Adler-32
)


def inflate_in_python(payload: bytes) -> bytes | None:
    try:
        return inflate(payload)
    except InputError:
        return None


def test_deflate_writes_the_header_of_the_specification() -> None:
    assert deflate(GRAPH)[:24] == SMALL_BLOB[:24]
    assert zlib.decompress(deflate(GRAPH)[24:]) == GRAPH


def test_inflate_reads_the_bytes_of_the_specification() -> None:
    assert inflate(SMALL_BLOB) == GRAPH


@given(st.binary(max_size=300) | st.binary(min_size=1, max_size=20).map(lambda part: part * 40))
@settings(max_examples=60, deadline=None)
def test_inflate_undoes_deflate(graph: bytes) -> None:
    payload = deflate(graph)
    assert inflate(payload) == graph
    assert payload == graph if not is_blob(payload) else len(payload) < len(graph)


def test_native_reader_inflates_as_python_does(read_natively) -> None:
    graphs = [GRAPH, bytes(1 << 20), bytes(range(256)) * 400, random.Random(0).randbytes(3000) * 2]
    assert read_natively([SMALL_BLOB, *map(deflate, graphs)]) == [GRAPH, *graphs]


def test_native_reader_refuses_what_python_refuses(read_natively) -> None:
    rng = random.Random(0)
    good = deflate(rng.randbytes(40) * 3 + GRAPH)
    blobs = [SMALL_BLOB[:n] for n in range(16, len(SMALL_BLOB))]
    for _ in range(3000):
        blob = bytearray(rng.choice([good, SMALL_BLOB]))
        for _ in range(rng.choice([1, 1, 2, 3])):
            blob[rng.randrange(16, len(blob))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        blobs.append(bytes(blob))
    blobs += [MAGIC + struct.pack("<II", 1, size) + SMALL_BLOB[24:] for size in (0, 1, 149, 150, 151, 1 << 20, 2**31, 2**32 - 1)]
    blobs += [SMALL_BLOB + b"more", SMALL_BLOB[:24] + zlib.compress(b"")]
    native, python = read_natively(blobs), [inflate_in_python(blob) for blob in blobs]
    assert native == python
    assert None in python
    assert GRAPH in python


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda b: b[:20], "of 20 bytes; expected a header", id="half a header"),
        pytest.param(lambda b: b[:16] + b"\2" + b[17:], "version 2", id="version"),
        pytest.param(lambda b: b[:20] + bytes(4) + b[24:], "0 bytes; expected", id="no bytes"),
        pytest.param(lambda b: b[:20] + struct.pack("<I", LIMIT + 1) + b[24:], f"{LIMIT + 1} bytes; expected", id="over the limit"),
        pytest.param(lambda b: b[:20] + b"\x95" + b[21:], "does not end after the 149 bytes", id="more than promised"),
        pytest.param(lambda b: b[:20] + b"\x97" + b[21:], "does not end after the 151 bytes", id="less than promised"),
        pytest.param(lambda b: b[:-1], "does not end after the 150 bytes", id="short"),
        pytest.param(lambda b: b[:24], "does not end after the 150 bytes", id="no stream"),
        pytest.param(lambda b: b[:-1] + b"\0", "incorrect data check", id="checksum"),
        pytest.param(lambda b: b[:24] + b"\0" + b[25:], "incorrect header check", id="no zlib stream"),
    ],
)
def test_a_damaged_blob_is_refused_by_name(change: object, reason: str) -> None:
    assert callable(change)
    with pytest.raises(InputError, match=reason):
        inflate(change(SMALL_BLOB))


def test_a_stream_that_holds_more_is_not_inflated_to_its_end() -> None:
    bomb = SMALL_BLOB[:24] + zlib.compress(bytes(1 << 25))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="does not end after the 150 bytes"):
            inflate(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_magic_is_derived_not_chosen() -> None:
    assert b"\x89QNGRAPH" + sha256(b"qn-deploy graph blob").digest()[:8] == MAGIC
