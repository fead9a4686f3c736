"""What a compressed weight means. `PQWeight` is the only place that says it, `int8()` and `dequantize()` are the only decoders.

A runtime sees the int8 tensor `centroids[codes]` with the scale `scale`; nothing downstream may quantize it again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from qn_deploy.errors import CompressionError
from qn_deploy.recipe.methods import MAX_CENTROIDS, Int4, Int8, code_bits
from qn_deploy.weights.grid import limit, row_scale

INT8_MAX = limit(8)  # symmetric: -128 is never used, as XNNPACK asks of weights


@dataclass(frozen=True)
class PQWeight:
    """A weight as codes into tables of int8 centroids (paper section 3.2, with the scale split off each output channel).

        weight.reshape(out, -1)[o, i*d:(i+1)*d] == scale[o] * centroids[i*G // B, codes[o, i]]

    Attributes:
        codes: uint8 [out, B], or uint16 where K > 256; B = in*kh*kw/d blocks a row. A file packs two codes a byte where K <= 16.
        centroids: int8 [G, K, d] in [-127, 127]; block column i reads codebook i*G // B. The paper's case is G = 1.
        scale: float32 [out], or [1] for the whole tensor; positive.
        shape: the weight's own shape: Linear [out, in], Conv [out, in/groups, kh, kw], Embedding [V, D].
        residual: a second table of the same shape, block size and scale; its int8 values are added, and the sum saturates at +-127.

    Raises:
        CompressionError: shapes, dtypes or codes that do not fit each other.
    """

    codes: Tensor
    centroids: Tensor
    scale: Tensor
    shape: tuple[int, ...]
    residual: PQWeight | None = None

    def __post_init__(self) -> None:
        if self.centroids.dtype != torch.int8 or self.centroids.ndim != 3:
            raise CompressionError(f"centroids must be int8 [G, K, d], found {self.centroids.dtype} {list(self.centroids.shape)}")
        books, size, d = self.centroids.shape
        if self.codes.dtype != codes_dtype(size) or self.codes.ndim != 2:
            raise CompressionError(
                f"codes into {size} centroids must be {codes_dtype(size)} [out, B], found {self.codes.dtype} {list(self.codes.shape)}"
            )
        out, columns = self.codes.shape
        if self.shape[0] != out or prod(self.shape) != out * columns * d:
            raise CompressionError(f"{out} x {columns} codes of {d} weights do not fill a weight of shape {list(self.shape)}")
        if not 1 <= size <= MAX_CENTROIDS or not 1 <= books <= columns:
            raise CompressionError(
                f"{books} codebooks of {size} centroids for {columns} block columns; expected 1..{columns} of 1..{MAX_CENTROIDS}"
            )
        if (highest := int(self.codes.numpy().max())) >= size:
            raise CompressionError(f"code {highest} points past the last of {size} centroids")
        if int(self.centroids.min()) < -INT8_MAX:
            raise CompressionError("a centroid holds -128; the symmetric int8 range is -127..127")
        _check_scale(self.scale, out)
        second = self.residual
        if second is not None and (
            second.residual is not None or (second.shape, second.block_size) != (self.shape, d) or not torch.equal(second.scale, self.scale)
        ):
            raise CompressionError("a residual table must have the shape, block size and scale of the first, and none of its own")

    @property
    def block_size(self) -> int:
        """d, the weights that one code stands for."""
        return self.centroids.shape[2]

    @property
    def tables(self) -> tuple[PQWeight, ...]:
        """This table, and the residual one if there is one."""
        return (self,) if self.residual is None else (self, self.residual)

    @property
    def nbytes(self) -> int:
        """Bytes that a file needs: packed codes, centroids, float32 scales (paper section 3.3, eq. M)."""
        return sum(table._code_bytes + table.centroids.numel() for table in self.tables) + 4 * self.scale.numel()

    @property
    def _code_bytes(self) -> int:
        return -(-self.codes.numel() * code_bits(self.centroids.shape[1]) // 8)

    @property
    def rows(self) -> Tensor:
        """int32 [out, B]: for each block its row in the codebooks laid end to end, centroids.reshape(G*K, d)."""
        return self.codes.to(torch.int32) + self.offsets

    @property
    def offsets(self) -> Tensor:
        """int32 [B]: where the codebook of each block column begins in centroids.reshape(G*K, d)."""
        books, size, _ = self.centroids.shape
        return book_offsets(self.codes.shape[1], books, size).to(torch.int32)

    def int8(self) -> Tensor:
        """The int8 weight that a runtime computes with, of shape `shape`."""
        first, *more = (table._blocks() for table in self.tables)
        for second in more:
            first = (first.to(torch.int16) + second).clamp_(-INT8_MAX, INT8_MAX).to(torch.int8)
        return first.reshape(self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> PQWeight:
        """The same values, in the same order, as a weight of another shape [out, ...]."""
        return self if shape == self.shape else replace(self, shape=shape, residual=self.residual and self.residual.reshaped(shape))

    def _blocks(self) -> Tensor:
        """int8 [out, B*d]: the centroid of each code. numpy takes a centroid as one value, which is ten times faster than rows of torch."""
        books, _, d = self.centroids.shape
        codes, centroids = self.codes.numpy(), self.centroids.contiguous().numpy().view(f"V{d}")[..., 0]
        blocks = np.empty(codes.shape, centroids.dtype)
        columns = codes.shape[1]
        for book in range(books):
            part = slice(-(-book * columns // books), -(-(book + 1) * columns // books))
            centroids[book].take(codes[:, part], out=blocks[:, part], mode="clip")
        return torch.from_numpy(blocks.view(np.int8))

    def dequantize(self) -> Tensor:
        """The float32 weight of shape `shape`."""
        return _per_row(self.scale, self.int8())


@dataclass(frozen=True)
class IntWeight:
    """A weight as symmetric integers (paper section 3.1): weight == scale[o] * values[o].

    Attributes:
        values: int8, of the weight's own shape, in [-127, 127], or [-7, 7] of 4 bits.
        scale: float32 [out], or [1] for the whole tensor; positive.
        bits: 8 or 4; a file packs two values of 4 bits a byte.

    Raises:
        CompressionError: shapes or dtypes that do not fit each other.
    """

    values: Tensor
    scale: Tensor
    bits: int = 8

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise CompressionError(f"integers of {self.bits} bits; expected 4 or 8")
        top = limit(self.bits)
        if self.values.dtype != torch.int8 or int(self.values.min()) < -top or int(self.values.max()) > top:
            raise CompressionError(
                f"values must be int8 in -{top}..{top}, found {self.values.dtype}, {int(self.values.min())}..{int(self.values.max())}"
            )
        _check_scale(self.scale, self.values.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's own shape."""
        return tuple(self.values.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that a file needs: packed values and float32 scales."""
        return -(-self.values.numel() * self.bits // 8) + 4 * self.scale.numel()

    @classmethod
    def from_float(cls, weight: Tensor, per_channel: bool = True, method: Int8 | Int4 | None = None) -> IntWeight:
        """Rounds a float weight [out, ...] to the grid of `method` (Int8 if None), with a scale for each channel or for the tensor.

        Raises:
            CompressionError: the weight holds NaN or infinity.
        """
        method = method or Int8()
        weight = weight.detach().float()
        if not torch.isfinite(weight).all():
            raise CompressionError("the weight holds NaN or infinity; find the training step that made it")
        rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        scale, top = row_scale(rows, method), limit(method.bits)
        values = to_int8(rows / scale[:, None], top).to(torch.int8)
        return cls(values.reshape(weight.shape), scale, method.bits)

    def table(self) -> PQWeight:
        """The same weight as a table of single values, the form in which files hold 4 bits: K = 15 centroids, d = 1.

        Raises:
            CompressionError: the values have 8 bits, which a table can't make smaller.
        """
        if self.bits != 4:
            raise CompressionError(f"values of {self.bits} bits need no table; only 4 bits are packed as codes")
        top = limit(self.bits)
        codes = (self.values + top).to(torch.uint8).flatten(1)
        return PQWeight(codes, torch.arange(-top, top + 1, dtype=torch.int8).reshape(1, -1, 1), self.scale, self.shape)

    def reshaped(self, shape: tuple[int, ...]) -> IntWeight:
        """The same values, in the same order, as a weight of another shape [out, ...]."""
        return self if shape == self.shape else replace(self, values=self.values.reshape(shape))

    def int8(self) -> Tensor:
        """The int8 weight that a runtime computes with."""
        return self.values

    def dequantize(self) -> Tensor:
        """The float32 weight."""
        return _per_row(self.scale, self.values)


CompressedWeight = PQWeight | IntWeight


def book_offsets(columns: int, books: int, size: int, device: torch.device | None = None) -> Tensor:
    """int64 [columns]: where the codebook of each block column begins, the codebooks of `size` centroids being laid end to end."""
    return torch.arange(columns, device=device) * books // columns * size


def codes_dtype(centroids: int) -> torch.dtype:
    """The dtype of codes into so many centroids: uint8, or uint16 over 256."""
    return torch.uint16 if code_bits(centroids) == 16 else torch.uint8


def to_int8(values: Tensor, top: int = INT8_MAX) -> Tensor:
    """Rounded to whole numbers in [-top, top], still float."""
    return values.round().clamp(-top, top)


def _per_row(scale: Tensor, values: Tensor) -> Tensor:
    return values.float().mul_(scale.reshape(-1, *[1] * (values.ndim - 1)))  # in place: an embedding is large


def _check_scale(scale: Tensor, out: int) -> None:
    if scale.dtype != torch.float32 or scale.ndim != 1 or scale.numel() not in (1, out):
        raise CompressionError(f"scale must be float32 [{out}] or [1], found {scale.dtype} {list(scale.shape)}")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CompressionError("a scale is zero, negative or not finite; runtimes take positive scales only")
