"""What a compressed weight means. `PQWeight` is the only place that says it, `int8()` and `dequantize()` are the only decoders.

A runtime sees the int8 tensor `centroids[codes]` with the scale `scale`; nothing downstream may quantize it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from qn_deploy.errors import CompressionError

INT8_MAX = 127  # symmetric: -128 is never used, as XNNPACK asks of weights
MAX_CENTROIDS = 256  # what one uint8 code can address
# A row this much smaller than the largest counts as zero. Dead channels decay to 1e-20; a scale that small would push the int32 bias of
# a quantized layer, bias / (input scale * weight scale), out of range.
DEAD_ROW = 1e-6


@dataclass(frozen=True)
class PQWeight:
    """A weight as codes into tables of int8 centroids (paper section 3.2, with the scale split off each output channel).

        weight.reshape(out, -1)[o, i*d:(i+1)*d] == scale[o] * centroids[i*G // B, codes[o, i]]

    Attributes:
        codes: uint8 [out, B], B = in*kh*kw/d blocks a row.
        centroids: int8 [G, K, d] in [-127, 127]; block column i reads codebook i*G // B. The paper's case is G = 1.
        scale: float32 [out], or [1] for the whole tensor; positive.
        shape: the weight's own shape: Linear [out, in], Conv [out, in/groups, kh, kw], Embedding [V, D].

    Raises:
        CompressionError: shapes, dtypes or codes that do not fit each other.
    """

    codes: Tensor
    centroids: Tensor
    scale: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.uint8 or self.codes.ndim != 2:
            raise CompressionError(f"codes must be uint8 [out, B], found {self.codes.dtype} {list(self.codes.shape)}")
        if self.centroids.dtype != torch.int8 or self.centroids.ndim != 3:
            raise CompressionError(f"centroids must be int8 [G, K, d], found {self.centroids.dtype} {list(self.centroids.shape)}")
        out, columns = self.codes.shape
        books, size, d = self.centroids.shape
        if self.shape[0] != out or prod(self.shape) != out * columns * d:
            raise CompressionError(f"{out} x {columns} codes of {d} weights do not fill a weight of shape {list(self.shape)}")
        if not 1 <= size <= MAX_CENTROIDS or not 1 <= books <= columns:
            raise CompressionError(
                f"{books} codebooks of {size} centroids for {columns} block columns; expected 1..{columns} of 1..{MAX_CENTROIDS}"
            )
        if int(self.codes.max()) >= size:
            raise CompressionError(f"code {int(self.codes.max())} points past the last of {size} centroids")
        if int(self.centroids.min()) < -INT8_MAX:
            raise CompressionError("a centroid holds -128; the symmetric int8 range is -127..127")
        _check_scale(self.scale, out)

    @property
    def block_size(self) -> int:
        """d, the weights that one code stands for."""
        return self.centroids.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes that a file needs: codes, centroids, float32 scales (paper section 3.3, eq. M)."""
        return self.codes.numel() + self.centroids.numel() + 4 * self.scale.numel()

    @property
    def rows(self) -> Tensor:
        """int32 [out, B]: for each block its row in the codebooks laid end to end, centroids.reshape(G*K, d)."""
        books, size, _ = self.centroids.shape
        columns = self.codes.shape[1]
        offsets = torch.arange(columns, dtype=torch.int32) * books // columns * size
        return self.codes.to(torch.int32) + offsets

    def int8(self) -> Tensor:
        """The int8 weight that a runtime computes with, of shape `shape`."""
        return self.centroids.flatten(0, 1)[self.rows.long()].reshape(self.shape)

    def dequantize(self) -> Tensor:
        """The float32 weight of shape `shape`."""
        return _per_row(self.scale, self.int8())


@dataclass(frozen=True)
class IntWeight:
    """A weight as symmetric int8 values (paper section 3.1): weight == scale[o] * values[o].

    Attributes:
        values: int8, of the weight's own shape, in [-127, 127].
        scale: float32 [out], or [1] for the whole tensor; positive.

    Raises:
        CompressionError: shapes or dtypes that do not fit each other.
    """

    values: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if self.values.dtype != torch.int8 or int(self.values.min()) < -INT8_MAX:
            raise CompressionError(f"values must be int8 in -127..127, found {self.values.dtype}, least {int(self.values.min())}")
        _check_scale(self.scale, self.values.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's own shape."""
        return tuple(self.values.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that a file needs: values and float32 scales."""
        return self.values.numel() + 4 * self.scale.numel()

    @classmethod
    def from_float(cls, weight: Tensor, per_channel: bool = True) -> IntWeight:
        """Rounds a float weight [out, ...] to int8, the largest magnitude of a channel (or of the tensor) at 127.

        Raises:
            CompressionError: the weight holds NaN or infinity.
        """
        weight = weight.detach().float()
        if not torch.isfinite(weight).all():
            raise CompressionError("the weight holds NaN or infinity; find the training step that made it")
        rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        scale = row_scale(rows)
        values = (rows / scale[:, None]).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
        return cls(values.reshape(weight.shape), scale)

    def int8(self) -> Tensor:
        """The int8 weight that a runtime computes with."""
        return self.values

    def dequantize(self) -> Tensor:
        """The float32 weight."""
        return _per_row(self.scale, self.values)


CompressedWeight = PQWeight | IntWeight


def row_scale(rows: Tensor) -> Tensor:
    """float32 [n]: the scale that puts each row's largest magnitude at 127.

    A dead row gets the largest row's scale, and so decodes to zeros; a tensor of zeros gets 1/127.
    """
    largest = rows.abs().amax(1)
    top = largest.max()
    return torch.where(largest > top * DEAD_ROW, largest, top if top > 0 else torch.ones(())).div(INT8_MAX)


def _per_row(scale: Tensor, values: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (values.ndim - 1)) * values.float()


def _check_scale(scale: Tensor, out: int) -> None:
    if scale.dtype != torch.float32 or scale.ndim != 1 or scale.numel() not in (1, out):
        raise CompressionError(f"scale must be float32 [{out}] or [1], found {scale.dtype} {list(scale.shape)}")
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise CompressionError("a scale is zero, negative or not finite; runtimes take positive scales only")
