"""A float weight becomes a table: rows divided by their scale, k-means over the blocks, centroids rounded to int8."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from qn_deploy.errors import CompressionError
from qn_deploy.recipe import Table
from qn_deploy.weights.compressed import INT8_MAX, PQWeight, codes_dtype, to_int8
from qn_deploy.weights.grid import live_rows
from qn_deploy.weights.kmeans import Effort, centroids_of, nearest, used


def table_from_weight(weight: Tensor, method: Table, seed: int = 0, per_channel: bool = True, lookups: Tensor | None = None) -> PQWeight:
    """Quantizes a weight by blocks of `method.block_size`, each group of block columns with its own codebook (paper section 3.2).

    Rows are divided by their root mean square before the clustering, so that rows of different norm share centroids. Rows of zeros
    stay exactly zero: they get a centroid of zeros to themselves, and an ordinary scale.

    Args:
        weight: float [out, ...], a row being everything that one output channel reads.
        method: block size, number of centroids and of codebooks, size of the residual codebook.
        seed: of the k-means.
        per_channel: False gives one scale for the whole weight, as an embedding wants, where 4 bytes a row cost as much as the codes.
        lookups: float32 [out], how often each row of an embedding is looked up, which decides what its error counts; None if not known.

    Returns:
        A PQWeight with at most `method.centroids` centroids a codebook; each is in use, or pads a codebook to the size of the largest.

    Raises:
        CompressionError: the block size doesn't divide a row, or the weight isn't finite.
    """
    blocks, scale, live = normalised(weight, method.block_size, per_channel)
    books = method.books(*blocks.shape[:2])
    importance = None if lookups is None else (lookups + 1).cpu()[:, None, None].expand_as(blocks)  # a row not seen yet will come
    centroids = codebooks(blocks, books, method.centroids, live, seed, importance)
    step = grid_step(centroids)
    first, decoded = _assigned(blocks / step, [to_int8(book / step) for book in centroids])
    table = as_weight(first, scale[: None if per_channel else 1] * step, weight.shape)
    if not method.residual:
        return table
    rest = blocks / step - decoded
    second, _ = _assigned(rest, [to_int8(book) for book in codebooks(rest, books, method.residual, live, seed, importance)])
    return as_weight(first, table.scale, weight.shape, residual=as_weight(second, table.scale, weight.shape))


def normalised(weight: Tensor, block_size: int, per_channel: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks of a weight, each row divided by its root mean square (or all by the weight's).

    Returns:
        blocks float32 [out, B, d]; scale float32 [out]; bool [out], False for rows of zeros, or next to zero.

    Raises:
        CompressionError: the block size doesn't divide a row, or the weight isn't finite.
    """
    rows = weight.detach().float().cpu().flatten(1)
    if rows.shape[1] % block_size:
        raise CompressionError(f"blocks of {block_size} weights do not divide a row of {rows.shape[1]}; choose a divisor as block size")
    if not torch.isfinite(rows).all():
        raise CompressionError("the weight holds NaN or infinity; find the training step that made it")
    scale, live = _row_rms(rows)
    if not per_channel:
        scale = torch.full_like(scale, float(rows.double().square().mean().sqrt()) if live.any() else 1.0)
    return (rows / scale[:, None]).reshape(rows.shape[0], -1, block_size), scale, live


def codebooks(
    blocks: Tensor,
    books: int,
    size: int,
    live: Tensor,
    seed: int = 0,
    importance: Tensor | None = None,
    effort: Effort | None = None,
) -> list[Tensor]:
    """Clusters the blocks of each group of block columns by themselves.

    Args:
        blocks: float32 [out, B, d].
        books: G, the number of groups.
        size: K, the most centroids of a codebook.
        live: bool [out]; the blocks of other rows share one centroid of zeros.
        seed: of the k-means.
        importance: float32 [out, B, d], what the squared error of each weight counts; None counts all alike.
        effort: of the k-means.

    Returns:
        G times float32 [K', d], K' <= K.
    """
    zero = torch.zeros(1 - int(live.all()), blocks.shape[2])
    found = []
    for columns in groups(blocks.shape[1], books):
        chosen = blocks[live][:, columns].flatten(0, 1)
        weights = None if importance is None else importance[live][:, columns].flatten(0, 1)
        centroids = centroids_of(chosen, size - len(zero), weights, effort, seed) if len(chosen) else blocks[:0, 0]
        found.append(torch.cat([centroids, zero]))
    return found


def groups(columns: int, books: int) -> Iterator[slice]:
    """The block columns of each codebook, in order: column i reads codebook i*G // B."""
    edges = [-(-book * columns // books) for book in range(books + 1)]
    return (slice(first, last) for first, last in pairwise(edges))


def grid_step(centroids: list[Tensor]) -> float:
    """What one int8 step stands for, where the largest magnitude of all codebooks is at 127."""
    return max(float(book.abs().max()) for book in centroids) / INT8_MAX or 1.0


def as_weight(assigned: list[tuple[Tensor, Tensor]], scale: Tensor, shape: tuple[int, ...], residual: PQWeight | None = None) -> PQWeight:
    """A PQWeight of each group's (centroids [K', d] of whole numbers, codes int64 [out, columns]); zeros pad the shorter codebooks."""
    size = max(len(book) for book, _ in assigned)
    padded = [torch.cat([book, book.new_zeros(size - len(book), book.shape[1])]) for book, _ in assigned]
    return PQWeight(
        codes=torch.cat([codes for _, codes in assigned], 1).to(codes_dtype(size)),
        centroids=torch.stack(padded).to(torch.int8),
        scale=scale,
        shape=tuple(shape),
        residual=residual,
    )


def _assigned(blocks: Tensor, centroids: list[Tensor]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Each group's centroids in use and codes [out, columns], and the blocks [out, B, d] that they decode to."""
    assigned, decoded = [], torch.empty_like(blocks)
    for columns, book in zip(groups(blocks.shape[1], len(centroids)), centroids, strict=True):
        chosen = blocks[:, columns]
        kept, codes = used(book, nearest(chosen.flatten(0, 1), book))  # codes of the centroids that the runtime will see
        assigned.append((kept, codes.reshape(chosen.shape[:2])))
        decoded[:, columns] = kept[assigned[-1][1]]
    return assigned, decoded


def _row_rms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [out] root mean square of each row, the mean of the others for dead rows; bool [out], False for the dead."""
    rms = rows.double().square().mean(1).sqrt()
    alive = live_rows(rms)
    usual = rms[alive].mean() if alive.any() else torch.ones((), dtype=torch.float64)
    return torch.where(alive, rms, usual).float(), alive
