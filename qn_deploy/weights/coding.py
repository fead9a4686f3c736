"""Entropy coding of what a table blob holds: Huffman codes, as zlib writes them, of centroids and codes.

Codes are used unevenly and centroids are mostly small, so both take fewer bits than they have. zlib is in every language that reads these
files. Its table of code lengths is small where the lengths come in order: centroids are sorted by how often they are used.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch

from qn_deploy.errors import InputError
from qn_deploy.weights.compressed import PQWeight

MOST = 1032  # bytes that one byte of a zlib stream stands for, at most
_STRIDE = 16
_STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)  # the second finds rows that repeat


def by_use(table: PQWeight) -> PQWeight:
    """The same weight, the centroids of each codebook in the order of how many codes name them, most first."""
    books, size, _ = table.centroids.shape
    rows = table.rows.long()
    uses = torch.bincount(rows.flatten(), minlength=books * size).reshape(books, size)
    order = uses.argsort(dim=1, descending=True, stable=True)
    return replace(
        table,
        codes=order.argsort(dim=1).flatten()[rows].to(table.codes.dtype),
        centroids=table.centroids.gather(1, order[..., None].expand_as(table.centroids)),
        residual=table.residual and by_use(table.residual),
    )


def deflated(arrays: Sequence[bytes]) -> bytes:
    """One zlib stream of arrays, each with Huffman codes of its own."""
    return min((_deflated(arrays, strategy) for strategy in _STRATEGIES), key=len)


def _deflated(arrays: Sequence[bytes], strategy: int) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL + 1, strategy)
    parts = []
    for number, array in enumerate(arrays, 1):
        parts += [stream.compress(array), stream.flush(zlib.Z_FINISH if number == len(arrays) else zlib.Z_BLOCK)]
    return b"".join(parts)


def inflated(stream: bytes, size: int) -> bytes:
    """The `size` bytes that a zlib stream stands for.

    Raises:
        InputError: it is damaged, does not stand for so many bytes, or something follows it.
    """
    if not 1 <= size <= MOST * len(stream):  # before memory is taken for it
        raise InputError(f"a zlib stream of {len(stream)} bytes can't stand for {size}")
    inflater = zlib.decompressobj()
    try:
        data = inflater.decompress(stream, size)
        more = inflater.decompress(inflater.unconsumed_tail, 1)  # also of a block without bytes, and the checksum
    except zlib.error as error:
        raise InputError(f"zlib stream: {error}") from None
    if len(data) != size or more or not inflater.eof or inflater.unused_data:
        raise InputError(f"zlib stream: it does not end after {size} bytes, or something follows it")
    return data


def shares(stream: bytes, sizes: Sequence[int]) -> list[int]:
    """How many bytes of a good zlib stream stand for each of the arrays in it, which have these sizes.

    They sum up to the stream's. Where one array ends and the next begins is told to _STRIDE bytes.
    """
    inflater, read = zlib.decompressobj(), 0
    ends: list[int] = []
    limits = list(accumulate(sizes))[:-1]
    for begin in range(0, len(stream), _STRIDE):
        read += len(inflater.decompress(stream[begin : begin + _STRIDE]))
        while len(ends) < len(limits) and read > limits[len(ends)]:
            ends.append(begin)
    ends += [len(stream)] * (len(sizes) - len(ends))
    return [end - begin for begin, end in pairwise([0, *ends])]
