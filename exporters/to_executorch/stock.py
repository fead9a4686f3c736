"""The stock form: a container that rebuilds the plain stock XNNPACK .pte byte for byte. README.md of this folder specifies the bytes.

The device then needs no native code of ours: any language reads the container. `pack` and `rebuild` are the Python side.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from hashlib import sha256

from qn_deploy.errors import InputError
from qn_deploy.weights.table_blob import unpack

from .pte import named_data

MAGIC = b"\x89QNSTOCK" + sha256(b"qn-deploy stock form").digest()[:8]
VERSION = 1
HEADER = struct.Struct("<16sIIQ32s")  # magic, version, pieces, bytes of the .pte, its SHA-256
PIECE = struct.Struct("<4I")  # CRC-32 of what follows it, kind, bytes stored, bytes rebuilt
LIMIT = (1 << 31) - 1  # bytes of a piece, stored or rebuilt: an array of Java holds no more


class Kind(IntEnum):
    """How a piece stores its bytes of the program."""

    BYTES = 0
    ZLIB = 1
    TABLE = 2


def pack(stock: bytes, tables: Mapping[str, bytes]) -> bytes:
    """The container that rebuilds a program.

    Args:
        stock: a program lowered by the stock XnnpackPartitioner.
        tables: blobs by the key of the constant that they stand for, as `named_blobs` gives them.

    Raises:
        InputError: `stock` is no .pte.
    """
    pieces: list[bytes] = []
    end = 0
    for key, constant in named_data(stock).items():  # in the order of the file
        if key in tables and len(constant) <= LIMIT:
            at = stock.index(constant, end)
            pieces += _literals(stock[end:at])
            pieces.append(_piece(Kind.TABLE, tables[key], len(constant)))
            end = at + len(constant)
    pieces += _literals(stock[end:])
    return b"".join((HEADER.pack(MAGIC, VERSION, len(pieces), len(stock), sha256(stock).digest()), *pieces))


def rebuild(container: bytes) -> bytes:
    """The program that a container stands for.

    Raises:
        InputError: the container breaks a rule of the format; the message says which, and in which piece.
    """
    if container.startswith(MAGIC[: len(container)]) and len(container) < HEADER.size:
        raise InputError(f"no stock form: {len(container)} bytes, less than its header of {HEADER.size}; it was cut short. Copy it again")
    if not container.startswith(MAGIC):
        raise InputError(f"no stock form: {len(container)} bytes that start with {container[:16].hex(' ')}; expected {MAGIC.hex(' ')}")
    _, version, count, size, digest = HEADER.unpack_from(container)
    if version != VERSION:
        raise InputError(f"stock form of version {version}; this qn-deploy reads version {VERSION}. Export the model again")
    stored = list(pieces(container, count))
    promised = sum(rebuilt for _, _, rebuilt in stored)
    if promised != size or not stored:
        raise InputError(f"stock form of {count} pieces that stand for {promised} bytes; its header promises {size}")
    found = sha256()
    parts = []
    with ThreadPoolExecutor() as pool:  # numpy, zlib and sha256 let go of the interpreter: one piece is hashed while others expand
        for part in pool.map(_expanded, range(count), stored):
            found.update(part)
            parts.append(part)
    if found.digest() != digest:
        raise InputError(f"stock form: the program rebuilt from it has the SHA-256 {found.hexdigest()}; its header promises {digest.hex()}")
    return b"".join(parts)


def _literals(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), LIMIT):
        part = data[at : at + LIMIT]
        stream = zlib.compress(part, 9)
        kind, stored = (Kind.ZLIB, stream) if len(stream) < len(part) else (Kind.BYTES, part)
        yield _piece(kind, stored, len(part))


def _piece(kind: Kind, stored: bytes, rebuilt: int) -> bytes:
    checked = PIECE.pack(0, kind, len(stored), rebuilt)[4:] + stored
    return struct.pack("<I", zlib.crc32(checked)) + checked


def pieces(container: bytes, count: int) -> Iterator[tuple[Kind, bytes, int]]:
    """Kind, data and rebuilt bytes of each piece, its frame checked."""
    at = HEADER.size
    for number in range(count):
        data = at + PIECE.size
        where = f"stock form: piece {number} at byte {at}"
        if data > len(container):
            raise InputError(f"{where} of {count} is missing: the file ends at byte {len(container)}; it was cut off")
        crc, kind, stored, rebuilt = PIECE.unpack_from(container, at)
        if data + stored > len(container):
            raise InputError(f"{where} promises bytes up to {data + stored}: the file ends at byte {len(container)}; it was cut off")
        checked = memoryview(container)[at + 4 : data + stored]
        if (found := zlib.crc32(checked)) != crc:
            raise InputError(f"{where} has the CRC-32 {found:08x}, expected {crc:08x}; it is damaged")
        if kind not in set(Kind) or not (1 <= stored <= LIMIT and 1 <= rebuilt <= LIMIT) or (kind == Kind.BYTES and stored != rebuilt):
            raise InputError(
                f"{where} is of kind {kind}, {stored} bytes for {rebuilt}; "
                f"expected kind 0 to 2 and 1 to {LIMIT} bytes, as many as stored in kind 0"
            )
        at = data + stored
        yield Kind(kind), container[data:at], rebuilt
    if at != len(container):
        raise InputError(f"stock form of {len(container)} bytes; its {count} pieces end at byte {at}")


def _expanded(number: int, piece: tuple[Kind, bytes, int]) -> bytes:
    kind, stored, rebuilt = piece
    if kind is Kind.BYTES:
        return stored
    try:
        data = unpack(stored) if kind is Kind.TABLE else _inflate(stored, rebuilt)
    except InputError as error:
        raise InputError(f"stock form: piece {number}: {error}") from None
    if len(data) != rebuilt:
        raise InputError(f"stock form: piece {number} stands for {len(data)} bytes; its header promises {rebuilt}")
    return data


def _inflate(stream: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stream, size)
    except zlib.error as error:
        raise InputError(f"zlib stream: {error}") from None
    if not inflater.eof or inflater.unused_data:
        raise InputError(f"zlib stream: it does not end after the {size} bytes that the piece promises, or something follows it")
    return data
