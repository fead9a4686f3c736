"""Tile blobs: a weight as the kernels read it. README.md of this folder specifies the bytes; native/tile_blob.h reads them."""

from __future__ import annotations

import struct
from hashlib import sha256

import numpy as np
import torch

from qn_deploy.errors import CompressionError, InputError
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.table_blob import DType, Layout, dense

from ..kernels.packing import packed, unpacked

MAGIC = b"\x89QNTILES" + sha256(b"qn-deploy tile blob").digest()[:8]
VERSION = 1
HEADER = struct.Struct("<16s6I")  # magic, version, rows, columns, codebooks, centroids in each, block size


def pack(table: PQWeight) -> bytes:
    """The blob of a table that the kernels take, see `memory.fits`; its scale is kept elsewhere."""
    header = HEADER.pack(MAGIC, VERSION, *table.codes.shape, *table.centroids.shape)
    return header + table.centroids.contiguous().numpy().tobytes() + packed(table).tobytes()


def is_blob(data: bytes) -> bool:
    """True if `data` is marked as a tile blob."""
    return data.startswith(MAGIC)


def read(blob: bytes) -> PQWeight:
    """The table that a blob holds, of shape [rows, inputs], with a scale of 1.

    Raises:
        InputError: the blob breaks a rule of the format; the message says which.
    """
    if len(blob) < HEADER.size or not is_blob(blob):
        raise InputError(f"no tile blob: {len(blob)} bytes that start with {blob[:16].hex(' ')}; expected {MAGIC.hex(' ')}")
    _, version, rows, columns, books, size, block = HEADER.unpack_from(blob)
    if version != VERSION or not (rows and block and 1 <= books <= columns and 1 <= size <= 256):
        raise InputError(
            f"tile blob of version {version}: {rows} rows of {columns} codes into {books} codebooks of {size} centroids of {block}; "
            f"expected version {VERSION}, 1 to 256 centroids, and no more codebooks than columns"
        )
    codes_at = HEADER.size + books * size * block
    if codes_at > len(blob):
        raise InputError(f"tile blob of {len(blob)} bytes; its header promises centroids up to byte {codes_at}")
    centroids = np.frombuffer(blob, np.int8, books * size * block, HEADER.size).reshape(books, size, block).copy()
    try:
        codes = unpacked(np.frombuffer(blob, np.uint8, offset=codes_at), rows, columns, size)
        return PQWeight(torch.from_numpy(codes), torch.from_numpy(centroids), torch.ones(1), (rows, columns * block))
    except (ValueError, CompressionError) as error:
        raise InputError(f"tile blob: {error}") from None


def unpack(blob: bytes) -> bytes:
    """The dense int8 constant that a blob stands for.

    Raises:
        InputError: the blob breaks a rule of the format; the message says which.
    """
    return dense(read(blob), Layout.OIS, DType.INT8)
