"""Table blobs: how a table-compressed constant lies in a file. exporters/to_executorch/README.md specifies the bytes.

`pack` and `unpack` are the Python side; native/table_blob.h there expands the same bytes on the device.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from enum import IntEnum
from hashlib import sha256
from math import prod

import numpy as np
import torch
from torch import Tensor

from qn_deploy.errors import CompressionError, InputError
from qn_deploy.recipe.methods import MAX_CENTROIDS, code_bits
from qn_deploy.weights import coding
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.packing import pack_halves, unpack_halves

MAGIC = b"\x89QNTABLE" + sha256(b"qn-deploy table blob").digest()[:8]
VERSION, CODED = 2, 3  # of plain blobs, and of those whose arrays are entropy-coded
HEADER = struct.Struct("<16sHBBB3s4I")  # magic, version, dtype, layout, tables, groups less 1, rows, inner, spatial, block size
SIZES = struct.Struct("<2I")  # before each table: codebooks, centroids in each
LENGTH = struct.Struct("<I")  # of the arrays of a coded blob, before their stream
CODED_HEADER = HEADER.size + LENGTH.size


class DType(IntEnum):
    """What a runtime reads: int8 values whose scale it keeps elsewhere, or float32 values with the scale multiplied in."""

    INT8 = 1
    FLOAT32 = 2


class Layout(IntEnum):
    """Order of the dense elements of a weight [rows, inner, spatial], slowest index first (O = rows, I = inner, S = spatial).

    Where the rows come in groups, each group has this order by itself, and one follows the other.
    """

    OIS = 0
    OSI = 1
    SIO = 2
    ISO = 3


_AXES = {Layout.OIS: (0, 1, 2), Layout.OSI: (0, 2, 1), Layout.SIO: (2, 1, 0), Layout.ISO: (1, 2, 0)}


def stored_orders(shape: tuple[int, ...], transposed: Iterable[int] = ()) -> tuple[tuple[Layout, int], ...]:
    """The layouts in which XNNPACK may keep a weight of this shape, each with its number of groups.

    Linear as torch does, Conv as OHWI, depthwise as 1HWC, and a transposed Conv, whose rows are its input channels, with those of a group
    last.

    Args:
        shape: of the weight.
        transposed: the number of groups of each transposed convolution that reads the weight.
    """
    return (_plain_layout(shape), 1), *((Layout.OIS, 1) if groups == shape[0] else (Layout.ISO, groups) for groups in transposed)


def _plain_layout(shape: tuple[int, ...]) -> Layout:
    if prod(shape[2:]) == 1:
        return Layout.OIS  # one pixel: the others are the same, and this one expands fastest
    return Layout.SIO if shape[1] == 1 else Layout.OSI


def dense(weight: PQWeight, layout: Layout, dtype: DType, groups: int = 1) -> bytes:
    """The bytes of the dense constant that a runtime without tables would store.

    Args:
        weight: the table.
        layout: of each group of rows.
        dtype: int8, or float32 with the scale multiplied in.
        groups: of rows, one after the other.
    """
    values = weight.int8() if dtype is DType.INT8 else weight.dequantize()
    return _bytes(values.reshape(groups, -1, *_volume(weight.shape)[1:]).permute(0, *(1 + axis for axis in _AXES[layout])))


def pack(weight: PQWeight, layout: Layout, dtype: DType, groups: int = 1, coded: bool = False) -> bytes:
    """The blob that expands to `dense(weight, layout, dtype, groups)`.

    Args:
        weight: the table.
        layout: of each group of rows.
        dtype: int8, or float32 with the scale multiplied in.
        groups: of rows, one after the other.
        coded: True takes fewer bytes for the arrays where entropy coding does, and stores a plain blob where it does not.

    Raises:
        CompressionError: a row has 2^32 weights or more, or there are more than 2^24 groups, or groups of different sizes.
    """
    rows, inner, spatial = _volume(weight.shape)
    if rows >= 1 << 32 or inner * spatial >= 1 << 32:
        raise CompressionError(f"a weight of shape {list(weight.shape)} is too large for a table blob; both sides must stay under 2^32")
    if not 1 <= groups <= 1 << 24 or rows % groups:
        raise CompressionError(f"a table blob can't hold {rows} rows in {groups} groups: these are of one size, and at most 2^24")
    further = (groups - 1).to_bytes(3, "little")
    shape = (dtype, layout, len(weight.tables), further, rows, inner, spatial, weight.block_size)
    plain = HEADER.pack(MAGIC, VERSION, *shape) + b"".join(array for _, array in _arrays(weight, dtype, planes=False))
    if not coded:
        return plain
    arrays = [array for _, array in _arrays(coding.by_use(weight), dtype, planes=True)]
    length = sum(map(len, arrays))
    if length >= 1 << 32:
        return plain
    return min(plain, HEADER.pack(MAGIC, CODED, *shape) + LENGTH.pack(length) + coding.deflated(arrays), key=len)


def is_blob(data: bytes) -> bool:
    """True if `data` is marked as a table blob."""
    return data.startswith(MAGIC)


def is_coded(blob: bytes) -> bool:
    """True if `data` is a table blob whose arrays are entropy-coded."""
    return is_blob(blob) and blob[len(MAGIC) :].startswith(struct.pack("<H", CODED))


def shares(blob: bytes) -> Counter[str]:
    """How many bytes of a good coded blob are scales, centroids (with their sizes) and codes; the rest is the header."""
    dtype = DType(HEADER.unpack_from(blob)[2])
    kinds, arrays = zip(*_arrays(read(blob), dtype, planes=True), strict=True)
    found: Counter[str] = Counter()
    for kind, size in zip(kinds, coding.shares(blob[CODED_HEADER:], [*map(len, arrays)]), strict=True):
        found[kind] += size
    return found


def unpack(blob: bytes) -> bytes:
    """The dense constant that a blob stands for.

    Raises:
        InputError: the blob breaks a rule of the format; the message says which.
    """
    weight = read(blob)
    _, _, dtype, layout, _, further, *_ = HEADER.unpack_from(blob)
    return dense(weight, Layout(layout), DType(dtype), 1 + int.from_bytes(further, "little"))


def read(blob: bytes) -> PQWeight:
    """The table that a blob holds, of shape [rows, inner, spatial]; its scale is 1 where the runtime keeps the scale elsewhere.

    Raises:
        InputError: the blob breaks a rule of the format; the message says which.
    """
    if len(blob) < HEADER.size or not is_blob(blob):
        raise InputError(f"no table blob: {len(blob)} bytes that start with {blob[:16].hex(' ')}; expected {MAGIC.hex(' ')}")
    _, version, dtype, layout, count, further, rows, inner, spatial, block = HEADER.unpack_from(blob)
    if version not in (VERSION, CODED) or dtype not in set(DType) or layout not in set(Layout) or count not in (1, 2):
        raise InputError(
            f"table blob of version {version}, dtype {dtype}, layout {layout}, {count} tables; "
            f"expected version {VERSION} or {CODED}, dtype 1 or 2, layout 0 to 3, 1 or 2 tables"
        )
    if rows % (groups := 1 + int.from_bytes(further, "little")):
        raise InputError(f"table blob of {rows} rows in {groups} groups; expected groups of one size")
    row = inner * spatial
    if not (rows and row and block) or row >= 1 << 32 or row % block:
        raise InputError(
            f"table blob of {rows} rows of {inner} x {spatial} weights, blocks of {block}; "
            "expected blocks that fill a row of fewer than 2^32 weights"
        )
    body = _Body(blob, HEADER.size) if version == VERSION else _inflated(blob)
    scale = torch.ones(1)
    if dtype == DType.FLOAT32:
        scale = torch.from_numpy(np.frombuffer(body.take(4 * rows, "scales"), "<f4").astype(np.float32))
    weight: PQWeight | None = None
    try:
        for codes, centroids in reversed([_read_table(body, rows, row // block, block, version == CODED) for _ in range(count)]):
            weight = PQWeight(codes, centroids, scale, (rows, inner, spatial), residual=weight)
    except CompressionError as error:
        raise InputError(f"table blob: {error}") from None
    assert weight is not None
    body.end()
    return weight


class _Body:
    """Takes the arrays of a blob one after the other."""

    def __init__(self, blob: bytes, at: int) -> None:
        self._blob, self._at = blob, at

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        begin, self._at = self._at, self._at + size
        if self._at > len(self._blob):
            raise InputError(f"table blob of {len(self._blob)} bytes; its header promises {what} up to byte {self._at}")
        return self._blob[begin : self._at]

    def end(self) -> None:
        """Checks that nothing is left."""
        if self._at != len(self._blob):
            raise InputError(f"table blob of {len(self._blob)} bytes; its header promises {self._at}")


def _inflated(blob: bytes) -> _Body:
    """The arrays of a coded blob."""
    if len(blob) < CODED_HEADER:
        raise InputError(f"table blob of {len(blob)} bytes; a coded one has a header of {CODED_HEADER}")
    (length,) = LENGTH.unpack_from(blob, HEADER.size)
    try:
        return _Body(coding.inflated(blob[CODED_HEADER:], length), 0)
    except InputError as error:
        raise InputError(f"table blob: {error}") from None


def _arrays(weight: PQWeight, dtype: DType, planes: bool) -> list[tuple[str, bytes]]:
    """Scales where the blob has them, then each table's sizes with its centroids, and its codes, each with its kind.

    `planes` puts the low bytes of 16-bit codes before their high bytes.
    """
    arrays = [("scales", _bytes(weight.scale.expand(weight.shape[0])))] if dtype is DType.FLOAT32 else []
    for table in weight.tables:
        books, size, _ = table.centroids.shape
        codes = _bytes(pack_halves(table.codes) if code_bits(size) == 4 else table.codes)
        split = planes and code_bits(size) == 16
        arrays.append(("centroids", SIZES.pack(books, size) + _bytes(table.centroids)))
        arrays += [("codes", part) for part in ((codes[::2], codes[1::2]) if split else (codes,))]
    return arrays


def _read_table(body: _Body, rows: int, columns: int, block: int, planes: bool) -> tuple[Tensor, Tensor]:
    """Codes [rows, columns] and centroids [G, K, d]."""
    books, size = SIZES.unpack(body.take(SIZES.size, "a table"))
    if not 1 <= size <= MAX_CENTROIDS or not 1 <= books <= columns:
        raise InputError(
            f"table blob of {books} codebooks of {size} centroids for {columns} blocks a row; "
            f"expected 1 to {MAX_CENTROIDS} centroids, no more codebooks than blocks in a row"
        )
    centroids = np.frombuffer(body.take(books * size * block, "centroids"), np.int8).reshape(books, size, block).copy()
    bits = code_bits(size)
    packed = body.take(-(-rows * columns * bits // 8), "codes")
    if planes and bits == 16:
        packed = np.frombuffer(packed, np.uint8).reshape(2, -1).T.tobytes()
    codes = torch.from_numpy(np.frombuffer(packed, "<u2" if bits == 16 else "u1").astype(np.uint16 if bits == 16 else np.uint8))
    if bits == 4:
        codes = unpack_halves(codes, rows * columns)
    return codes.reshape(rows, columns), torch.from_numpy(centroids)


def named_blobs(weight: PQWeight, dtype: DType, transposed: Iterable[int] = (), coded: bool = False) -> dict[str, bytes]:
    """Blobs of a weight that are smaller than the dense constant, by the key under which XNNPACK stores that.

    The key is the SHA-256 of the dense bytes in hex, so weights with equal values share an entry. There is a blob for each layout in which
    XNNPACK may keep the weight: its keys tell which one it did.

    Args:
        weight: the table.
        dtype: of the constant.
        transposed: the number of groups of each transposed convolution that reads the weight.
        coded: as for `pack`.
    """
    blobs: dict[str, bytes] = {}
    for layout, groups in stored_orders(weight.shape, transposed):
        blob, constant = pack(weight, layout, dtype, groups, coded), dense(weight, layout, dtype, groups)
        if len(blob) < len(constant):
            blobs[sha256(constant).hexdigest()] = blob
    return blobs


def _volume(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], shape[1], prod(shape[2:])


def _bytes(tensor: Tensor) -> bytes:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
