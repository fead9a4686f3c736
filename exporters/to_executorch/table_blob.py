"""Table blobs: how a table-compressed constant lies in a .pte file. README.md of this folder specifies the bytes.

`pack` and `unpack` are the Python side; native/table_blob.h expands the same bytes on the device.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from hashlib import sha256
from math import prod

import numpy as np
import torch
from torch import Tensor

from qn_deploy.compress.weights import PQWeight
from qn_deploy.errors import CompressionError, InputError

MAGIC = b"\x89QNTABLE" + sha256(b"qn-deploy table blob").digest()[:8]
VERSION = 1
CODE_BITS = 8
# magic, version, dtype, layout, code bits, three zeros, rows, inner, spatial, block size, codebooks, centroids a codebook
HEADER = struct.Struct("<16sHBBB3s6I")


class DType(IntEnum):
    """What a runtime reads: int8 values whose scale it keeps elsewhere, or float32 values with the scale multiplied in."""

    INT8 = 1
    FLOAT32 = 2


class Layout(IntEnum):
    """Order of the dense elements of a weight [rows, inner, spatial], slowest index first (O = rows, I = inner, S = spatial)."""

    OIS = 0
    OSI = 1
    SIO = 2


_AXES = {Layout.OIS: (0, 1, 2), Layout.OSI: (0, 2, 1), Layout.SIO: (2, 1, 0)}


def stored_layout(shape: tuple[int, ...]) -> Layout:
    """The layout in which XNNPACK keeps a weight of this shape: Linear as torch does, Conv as OHWI, depthwise as 1HWC."""
    if prod(shape[2:]) == 1:
        return Layout.OIS  # one pixel: every layout is the same, and this one expands fastest
    return Layout.SIO if shape[1] == 1 else Layout.OSI


def dense(weight: PQWeight, layout: Layout, dtype: DType) -> bytes:
    """The bytes of the dense constant that a runtime without tables would store."""
    values = weight.int8() if dtype is DType.INT8 else weight.dequantize()
    return _bytes(values.reshape(_volume(weight.shape)).permute(_AXES[layout]))


def pack(weight: PQWeight, layout: Layout, dtype: DType) -> bytes:
    """The blob that expands to `dense(weight, layout, dtype)`.

    Raises:
        CompressionError: a row has 2^32 weights or more.
    """
    rows, inner, spatial = _volume(weight.shape)
    if rows >= 1 << 32 or inner * spatial >= 1 << 32:
        raise CompressionError(f"a weight of shape {list(weight.shape)} is too large for a table blob; both sides must stay under 2^32")
    books, size, block = weight.centroids.shape
    header = HEADER.pack(MAGIC, VERSION, dtype, layout, CODE_BITS, bytes(3), rows, inner, spatial, block, books, size)
    scales = _bytes(weight.scale.expand(rows)) if dtype is DType.FLOAT32 else b""
    return header + scales + _bytes(weight.centroids) + _bytes(weight.codes)


def is_blob(data: bytes) -> bool:
    """True if `data` is marked as a table blob."""
    return data.startswith(MAGIC)


def unpack(blob: bytes) -> bytes:
    """The dense constant that a blob stands for.

    Raises:
        InputError: the blob breaks a rule of the format; the message says which.
    """
    weight = read(blob)
    _, _, dtype, layout, *_ = HEADER.unpack_from(blob)
    return dense(weight, Layout(layout), DType(dtype))


def read(blob: bytes) -> PQWeight:
    """The table that a blob holds, of shape [rows, inner, spatial]; its scale is 1 where the runtime keeps the scale elsewhere.

    Raises:
        InputError: the blob breaks a rule of the format; the message says which.
    """
    if len(blob) < HEADER.size or not is_blob(blob):
        raise InputError(f"no table blob: {len(blob)} bytes that start with {blob[:16].hex(' ')}; expected {MAGIC.hex(' ')}")
    _, version, dtype, layout, code_bits, reserved, *sizes = HEADER.unpack_from(blob)
    if (version, code_bits, reserved) != (VERSION, CODE_BITS, bytes(3)) or dtype not in set(DType) or layout not in set(Layout):
        raise InputError(
            f"table blob of version {version}, dtype {dtype}, layout {layout}, {code_bits}-bit codes, reserved {reserved.hex()}; "
            f"expected version {VERSION}, dtype 1 or 2, layout 0 to 2, 8-bit codes, reserved 000000"
        )
    return _weight(blob, *sizes, scaled=dtype == DType.FLOAT32)


def _weight(blob: bytes, rows: int, inner: int, spatial: int, block: int, books: int, size: int, *, scaled: bool) -> PQWeight:
    row = inner * spatial
    if not (rows and row and block and books and 1 <= size <= 256) or row >= 1 << 32 or row % block or books > row // block:
        raise InputError(
            f"table blob of {rows} rows of {inner} x {spatial} weights, blocks of {block}, {books} codebooks of {size} centroids; "
            "expected blocks that fill a row of fewer than 2^32 weights, 1 to 256 centroids, no more codebooks than blocks in a row"
        )
    scales, centroids, codes = rows if scaled else 0, books * size * block, rows * (row // block)
    if len(blob) != HEADER.size + 4 * scales + centroids + codes:
        raise InputError(
            f"table blob of {len(blob)} bytes; its header promises {HEADER.size} of its own, {scales} scales of 4, {centroids} bytes of "
            f"centroids and {codes} codes"
        )
    at = HEADER.size + 4 * scales
    scale = np.frombuffer(blob, "<f4", scales, HEADER.size).astype(np.float32) if scaled else np.ones(1, np.float32)
    table = np.frombuffer(blob, np.int8, centroids, at).reshape(books, size, block).copy()
    code = np.frombuffer(blob, np.uint8, codes, at + centroids).reshape(rows, -1).copy()
    try:
        return PQWeight(torch.from_numpy(code), torch.from_numpy(table), torch.from_numpy(scale), (rows, inner, spatial))
    except CompressionError as error:
        raise InputError(f"table blob: {error}") from None


def named_blobs(weights: Mapping[str, PQWeight], dtype: DType) -> dict[str, bytes]:
    """Blobs of all weights that become smaller, by the key under which XNNPACK stores the dense constant.

    The key is the SHA-256 of the dense bytes in hex, so weights with equal values share an entry (the smaller blob is kept).
    """
    blobs: dict[str, bytes] = {}
    for weight in weights.values():
        layout = stored_layout(weight.shape)
        blob, constant = pack(weight, layout, dtype), dense(weight, layout, dtype)
        key = sha256(constant).hexdigest()
        if len(blob) < len(blobs.get(key, constant)):
            blobs[key] = blob
    return blobs


def _volume(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[1], prod(shape[2:])


def _bytes(tensor: Tensor) -> bytes:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<")).tobytes()
