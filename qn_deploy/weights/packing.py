"""Weights and codes as files hold them: two codes of 4 bits share a byte, the first in the low half, as ONNX packs uint4."""

from __future__ import annotations

import torch
from torch import Tensor

from qn_deploy.errors import CompressionError
from qn_deploy.recipe.methods import code_bits
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight

_INT16_SHIFT = 1 << 15  # ExecuTorch looks up int16 but not uint16


def pack_halves(values: Tensor) -> Tensor:
    """uint8 [ceil(n/2)] from the low four bits of each of n values, in their flat order; an odd one out leaves four zero bits."""
    halves = values.flatten().to(torch.uint8) & 15
    if halves.numel() % 2:
        halves = torch.cat([halves, halves.new_zeros(1)])
    return halves[0::2] | halves[1::2] << 4


def unpack_halves(packed: Tensor, count: int) -> Tensor:
    """uint8 [count] in 0..15: the inverse of `pack_halves`.

    Raises:
        CompressionError: so many values do not fill these bytes, or the half byte left over is not zero.
    """
    if packed.dtype != torch.uint8 or packed.numel() != -(-count // 2):
        raise CompressionError(f"{count} values of 4 bits take {-(-count // 2)} bytes uint8, found {packed.numel()} {packed.dtype}")
    halves = torch.stack([packed & 15, packed >> 4], dim=1).flatten()
    if halves[count:].any():
        raise CompressionError(f"the half byte after {count} values of 4 bits is not zero")
    return halves[:count]


def as_table(weight: CompressedWeight) -> PQWeight | None:
    """The table as which an exported file holds a weight: its own, or that of its 4-bit values; None for int8, which is held as it is."""
    if isinstance(weight, IntWeight):
        return weight.table() if weight.bits == 4 else None
    return weight


def packs_rows(table: PQWeight) -> bool:
    """True if each row of codes fills whole bytes with two codes each."""
    return code_bits(table.centroids.shape[1]) == 4 and table.codes.shape[1] % 2 == 0


def code_rows(table: PQWeight) -> Tensor:
    """The codes as an embedding looks up rows of them.

    uint8 [out, B/2], two codes a byte; uint8 [out, B] over 16 centroids, or where B is odd; int16 [out, B] over 256, each code less 2^15.
    """
    if packs_rows(table):
        return pack_halves(table.codes).reshape(len(table.codes), -1)
    if table.codes.dtype == torch.uint16:
        return (table.codes.to(torch.int32) - _INT16_SHIFT).to(torch.int16)
    return table.codes


def code_pairs() -> Tensor:
    """uint8 [256, 2]: the two codes in each byte. Looking bytes up in it unpacks them with the one operator that every runtime has."""
    return unpack_halves(torch.arange(256, dtype=torch.uint8), 512).reshape(256, 2)


def row_offsets(table: PQWeight) -> Tensor:
    """int32 [B]: what turns looked up codes into rows of centroids.reshape(G*K, d)."""
    return table.offsets + (_INT16_SHIFT if table.codes.dtype == torch.uint16 else 0)
