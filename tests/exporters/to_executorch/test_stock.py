from __future__ import annotations

import struct
import tracemalloc
import zlib
from hashlib import sha256

import pytest
import torch

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch.pte import named_data
from qn_deploy.exporters.to_executorch.stock import HEADER, LIMIT, MAGIC, PIECE, Kind, pack, rebuild
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.table_blob import DType, Layout
from qn_deploy.weights.table_blob import pack as pack_table

# [2, 4] as a convolution's [2, 2, 1, 2] that XNNPACK keeps as OSI: rows 1 2 3 4 and 3 4 1 2
TABLE = pack_table(
    PQWeight(
        codes=torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8),
        centroids=torch.tensor([[[1, 2], [3, 4]]], dtype=torch.int8),
        scale=torch.ones(1),
        shape=(2, 2, 1, 2),
    ),
    Layout.OSI,
    DType.INT8,
)
PROGRAM = b"head" + bytes([1, 3, 2, 4, 3, 1, 4, 2]) + bytes(100)
SMALL = bytes.fromhex(
    "89 51 4e 53 54 4f 43 4b 77 21 86 01 e0 09 cf 0b"  # magic
    "01 00 00 00  03 00 00 00  70 00 00 00 00 00 00 00"  # version 1, 3 pieces, 112 bytes
    + sha256(PROGRAM).hexdigest()
    + "50 57 40 ed  00 00 00 00  04 00 00 00  04 00 00 00  68 65 61 64"  # bytes
    + "dd d9 cd e5  02 00 00 00  36 00 00 00  08 00 00 00"
    + TABLE.hex()
    + "7a 5a 87 ee  01 00 00 00  0c 00 00 00  64 00 00 00  78 da 63 60 a0 3d 00 00 00 64 00 01"  # zlib
)


def piece(kind: int, stored: bytes, rebuilt: int, length: int | None = None) -> bytes:
    frame = PIECE.pack(0, kind, len(stored) if length is None else length, rebuilt)[4:] + stored
    return struct.pack("<I", zlib.crc32(frame)) + frame


def container(*pieces: bytes, size: int = 4, program: bytes = b"head", version: int = 1, count: int | None = None) -> bytes:
    return HEADER.pack(MAGIC, version, len(pieces) if count is None else count, size, sha256(program).digest()) + b"".join(pieces)


HEAD = piece(Kind.BYTES, b"head", 4)


def test_rebuild_reads_the_bytes_of_the_specification() -> None:
    assert rebuild(SMALL) == PROGRAM


@pytest.mark.parametrize(
    ("damaged", "reason"),
    [
        pytest.param(b"", "no stock form: 0 bytes", id="empty"),
        pytest.param(SMALL[:40], "no stock form: 40 bytes", id="half a header"),
        pytest.param(b"\x88" + SMALL[1:], "no stock form: .* start with 88 51", id="magic"),
        pytest.param(container(HEAD, version=2), "version 2; .* reads version 1", id="version"),
        pytest.param(container(size=0, program=b""), "0 pieces that stand for 0 bytes", id="no piece"),
        pytest.param(container(HEAD, size=5), "stand for 4 bytes; its header promises 5", id="size"),
        pytest.param(container(HEAD, HEAD), "stand for 8 bytes; its header promises 4", id="a piece too many"),
        pytest.param(container(HEAD, program=b"tail"), f"has the SHA-256 {sha256(b'head').hexdigest()}", id="sha256"),
        pytest.param(container(HEAD, count=2), "piece 1 at byte 84 of 2 is missing: .* at byte 84; it was cut off", id="a piece too few"),
        pytest.param(container(HEAD)[:-5], "piece 0 at byte 64 of 1 is missing: the file ends at byte 79", id="half a frame"),
        pytest.param(container(HEAD)[:-1], "piece 0 at byte 64 promises bytes up to 84: the file ends at byte 83", id="half a piece"),
        pytest.param(container(HEAD) + b"\0", "85 bytes; its 1 pieces end at byte 84", id="bytes behind the last piece"),
        pytest.param(container(HEAD)[:-1] + b"x", "piece 0 at byte 64 has the CRC-32", id="crc"),
        pytest.param(container(HEAD, piece(3, b"x", 1), size=5), "piece 1 at byte 84 is of kind 3", id="kind"),
        pytest.param(container(piece(0, b"", 0), size=0), "of kind 0, 0 bytes for 0", id="an empty piece"),
        pytest.param(container(piece(0, b"head", 5), size=5), "4 bytes for 5; expected .* as many as stored", id="bytes that are more"),
        pytest.param(container(piece(1, b"head", LIMIT + 1), size=LIMIT + 1), "4 bytes for 2147483648; expected", id="over the limit"),
        pytest.param(container(piece(1, b"head", 4)), "piece 0: zlib stream: Error -3", id="no stream"),
        pytest.param(container(piece(1, zlib.compress(b"head")[:-1], 4)), "piece 0: zlib stream: it does not end", id="half a stream"),
        pytest.param(container(piece(1, zlib.compress(b"head"), 3), size=3), "does not end after the 3 bytes", id="a longer stream"),
        pytest.param(container(piece(1, zlib.compress(b"head"), 5), size=5), "stands for 4 bytes; .* promises 5", id="a shorter stream"),
        pytest.param(container(piece(1, zlib.compress(b"head") + b"\0", 4)), "or something follows it", id="bytes behind the stream"),
        pytest.param(container(piece(2, TABLE[:-1], 8), size=8), "piece 0: table blob of 53 bytes", id="a damaged table"),
        pytest.param(container(piece(2, b"head", 4)), "piece 0: no table blob", id="no table"),
        pytest.param(container(piece(2, TABLE, 9), size=9), "piece 0 stands for 8 bytes; .* promises 9", id="a larger table"),
    ],
)
def test_a_damaged_container_is_refused_by_name(damaged: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        rebuild(damaged)


def test_every_changed_byte_is_found() -> None:
    for at in range(len(SMALL)):
        with pytest.raises(InputError):
            rebuild(SMALL[:at] + bytes([SMALL[at] ^ 0x10]) + SMALL[at + 1 :])


def test_a_stream_is_not_inflated_past_what_it_promises() -> None:
    bomb = zlib.compress(bytes(1 << 28))
    tracemalloc.start()
    with pytest.raises(InputError, match="does not end after the 4 bytes"):
        rebuild(container(piece(1, bomb, 4)))
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_a_program_comes_back_byte_for_byte(lowered) -> None:
    packed = pack(lowered.stock, lowered.tables)
    assert rebuild(packed) == lowered.stock
    saved = sum(len(named_data(lowered.stock)[key]) - len(blob) for key, blob in lowered.tables.items())
    assert len(packed) < len(lowered.stock) - saved
    assert all(blob in packed for blob in lowered.tables.values())


def test_a_program_without_tables_comes_back(lowered) -> None:
    assert rebuild(pack(lowered.stock, {})) == lowered.stock
