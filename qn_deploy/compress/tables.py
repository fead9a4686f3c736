"""A float weight becomes a table: rows divided by their scale, k-means over the blocks, centroids rounded to int8."""

from __future__ import annotations

import torch
from torch import Tensor

from qn_deploy.compress.kmeans import kmeans, nearest, used
from qn_deploy.compress.weights import DEAD_ROW, INT8_MAX, PQWeight
from qn_deploy.errors import CompressionError
from qn_deploy.recipe import Table


def table_from_weight(weight: Tensor, method: Table, seed: int = 0, per_channel: bool = True) -> PQWeight:
    """Quantizes a weight by blocks of `method.block_size` with one codebook (paper section 3.2).

    Rows are divided by their root mean square before the clustering, so that rows of different norm share centroids. Rows of zeros
    stay exactly zero: they get a centroid of zeros to themselves, and an ordinary scale.

    Args:
        weight: float [out, ...], a row being everything that one output channel reads.
        method: block size and number of centroids.
        seed: of the k-means.
        per_channel: False gives one scale for the whole weight, as an embedding wants, where 4 bytes a row cost as much as the codes.

    Returns:
        A PQWeight with at most `method.centroids` centroids, all in use.

    Raises:
        CompressionError: the block size doesn't divide a row, or the weight isn't finite.
    """
    rows = weight.detach().float().cpu().flatten(1)
    size, d = method.centroids, method.block_size
    if rows.shape[1] % d:
        raise CompressionError(f"blocks of {d} weights do not divide a row of {rows.shape[1]}; choose a divisor as block size")
    if not torch.isfinite(rows).all():
        raise CompressionError("the weight holds NaN or infinity; find the training step that made it")
    scale, live = _row_rms(rows)
    if not per_channel:
        scale = torch.full_like(scale, float(rows.double().square().mean().sqrt()) or 1.0)
    blocks = (rows / scale[:, None]).reshape(rows.shape[0], -1, d)  # [out, B, d]

    centroids = torch.zeros(0, d)
    if live.any():
        centroids, _ = kmeans(blocks[live].flatten(0, 1), size if live.all() else size - 1, seed=seed)
    if not live.all():
        centroids = torch.cat([centroids, torch.zeros(1, d)])

    step = float(centroids.abs().max()) / INT8_MAX or 1.0
    grid = (centroids / step).round().clamp(-INT8_MAX, INT8_MAX)
    grid, codes = used(grid, nearest(blocks.flatten(0, 1) / step, grid))  # codes of the centroids that the runtime will see
    return PQWeight(
        codes=codes.to(torch.uint8).reshape(blocks.shape[:2]),
        centroids=grid.to(torch.int8)[None],
        scale=(scale if per_channel else scale[:1]) * step,
        shape=tuple(weight.shape),
    )


def _row_rms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [out] root mean square of each row, the mean of the others for dead rows; bool [out], False for the dead."""
    rms = rows.double().square().mean(1).sqrt()
    live = rms > DEAD_ROW * rms.max()
    usual = rms[live].mean() if live.any() else torch.ones((), dtype=torch.float64)
    tiny = torch.finfo(torch.float32).tiny
    return torch.where(live, rms, usual).clamp_min(tiny).float(), live
