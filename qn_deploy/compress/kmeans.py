"""k-means over the blocks of a weight. The only file that knows faiss."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qn_deploy.errors import CompressionError

# faiss trains on a sample of this many blocks a centroid. A million blocks for K = 256 is more than nearly every layer has, and keeps
# the largest embedding at seconds.
_SAMPLE = 4096


def kmeans(blocks: Tensor, k: int, iterations: int = 25, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Clusters blocks so that the summed squared distance to their centroids is small (paper section 3.2, eq. 4).

    Blocks with at most `k` distinct values come back exactly, each as its own centroid. The same seed gives the same codes.

    Args:
        blocks: float32 [N, d], N >= 1.
        k: the most centroids to return.
        iterations: rounds of Lloyd's algorithm.
        seed: of the first centroids and of the sample.

    Returns:
        (centroids float32 [K', d], codes int64 [N]) with K' <= k, each centroid being the code of at least one block.

    Raises:
        CompressionError: the blocks hold NaN or infinity.
    """
    if not torch.isfinite(blocks).all():
        raise CompressionError("the weight holds NaN or infinity; find the training step that made it")
    # Sorting all blocks is slow, so first look at enough of them to know, nearly always, that they are many.
    if torch.unique(blocks[: 16 * k], dim=0).shape[0] <= k:
        distinct, codes = torch.unique(blocks, dim=0, return_inverse=True)
        if distinct.shape[0] <= k:
            return distinct, codes
    import faiss  # not above: loading a compressed model needs no k-means

    points = blocks.contiguous().numpy()
    clustering = faiss.Kmeans(blocks.shape[1], k, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=_SAMPLE)
    clustering.train(points)
    centroids = torch.from_numpy(np.array(clustering.centroids))
    return used(centroids, nearest(blocks, centroids))


def nearest(blocks: Tensor, centroids: Tensor) -> Tensor:
    """int64 [N]: for each block [N, d] the centroid [K, d] at the least Euclidean distance."""
    import faiss

    _, codes = faiss.knn(blocks.contiguous().numpy(), centroids.contiguous().numpy(), 1)
    return torch.from_numpy(codes[:, 0].copy())


def used(centroids: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The centroids that some code points to, in their order, and the codes that point into those."""
    kept, codes = torch.unique(codes, return_inverse=True)
    return centroids[kept], codes
