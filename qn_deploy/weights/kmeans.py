"""k-means over the blocks of a weight, plain or with a weight for each element. The only file that knows faiss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from qn_deploy.errors import CompressionError

Backend = Literal["faiss", "torch"]
"""Who compares blocks with centroids: faiss, the fastest on a processor, or torch, which runs where the blocks are."""

_LARGE_SAMPLE, _LEAST_SAMPLE = 1 << 20, 64  # large codebooks get fewer blocks a centroid, so that a round takes seconds
_FIRST = 32  # blocks a centroid that the first centroids are drawn from
_PAIRS = 1 << 20  # that torch compares at a time
_TRACE = 1e-6  # of a block's mean weight, added to its weights: a mean exists where all of a dimension are 0
_LEAST = 1e-18  # of the mean weight, added to all weights, for blocks without any
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Effort:
    """How long a k-means goes on.

    Attributes:
        iterations: the most rounds of Lloyd's algorithm; it ends when no code changes.
        sample: blocks a centroid that are looked at; 1,024 lose less than 0.2 % to all of them.
    """

    iterations: int = 25
    sample: int = 1024


def kmeans(
    blocks: Tensor,
    k: int,
    weights: Tensor | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    backend: Backend | None = None,
) -> tuple[Tensor, Tensor]:
    """Clusters blocks so that their summed squared distance to their centroids is small (paper section 3.2, eq. 4).

    With weights it is the sum of `weights * (blocks - centroids[codes])**2`. Blocks with at most `k` distinct values come back exactly,
    each as its own centroid. The same seed gives the same codes, with any number of threads.

    Args:
        blocks: float32 [N, d], N >= 1.
        k: the most centroids to return.
        weights: float32 [N, d], >= 0, what the squared error of each element counts; None counts all alike.
        effort: how long it goes on; the usual one if None.
        seed: of everything random.
        backend: None takes faiss for blocks on the CPU, torch for others, which faiss can't read.

    Returns:
        (centroids float32 [K', d], codes int64 [N]) with K' <= k, each centroid being the code of at least one block.

    Raises:
        CompressionError: the blocks or the weights hold NaN or infinity, or a weight is negative.
    """
    mass = _mass(weights)
    if (distinct := _distinct(blocks, k)) is not None:
        return distinct
    centroids = _trained(blocks, k, mass, effort or Effort(), seed, _chosen(backend, blocks))
    return used(centroids, nearest(blocks, centroids, weights, backend))


def centroids_of(blocks: Tensor, k: int, weights: Tensor | None = None, effort: Effort | None = None, seed: int = 0) -> Tensor:
    """The centroids of `kmeans` without the codes, which take a search of their own; a few may be the code of no block.

    Raises:
        CompressionError: as `kmeans`.
    """
    mass = _mass(weights)
    if (distinct := _distinct(blocks, k)) is not None:
        return distinct[0]
    return _trained(blocks, k, mass, effort or Effort(), seed, _chosen(None, blocks))


def _distinct(blocks: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """The distinct blocks, if they are at most k, and the codes into them."""
    if not torch.isfinite(blocks).all():
        raise CompressionError("the weight holds NaN or infinity; find the training step that made it")
    # Sorting all blocks is slow, so first look at enough of them to know, nearly always, that they are many.
    if torch.unique(blocks[: 2 * k], dim=0).shape[0] <= k:
        distinct, codes = torch.unique(blocks, dim=0, return_inverse=True)
        if distinct.shape[0] <= k:
            return distinct, codes
    return None


def _trained(blocks: Tensor, k: int, mass: Tensor | None, effort: Effort, seed: int, backend: Backend) -> Tensor:
    """Centroids of a sample of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    size = k * min(effort.sample, max(_LEAST_SAMPLE, _LARGE_SAMPLE // k))
    sample = torch.randperm(len(blocks), generator=generator)[:size].to(blocks.device)
    return _lloyd(blocks[sample], None if mass is None else mass[sample], k, effort.iterations, generator, backend)


def nearest(blocks: Tensor, centroids: Tensor, weights: Tensor | None = None, backend: Backend | None = None) -> Tensor:
    """The nearest centroid of each block.

    Args:
        blocks: float32 [N, d].
        centroids: float32 [K, d].
        weights: float32 [N, d], >= 0, of each element's squared distance; None counts all alike.
        backend: None takes faiss for blocks on the CPU, torch for others, which faiss can't read.

    Returns:
        int64 [N].

    Raises:
        CompressionError: the weights hold NaN or infinity, or one is negative.
    """
    return _search(blocks, _mass(weights), _chosen(backend, blocks))(centroids)


def least(scores: Tensor) -> Tensor:
    """int64 [...]: where the least of scores [..., K] is, the first of equal ones."""
    if scores.device.type == "cpu":
        return torch.from_numpy(scores.numpy().argmin(-1))  # seven times as fast as torch's
    return scores.argmin(-1)


def used(centroids: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The centroids that some code points to, in their order, and the codes that point into those."""
    kept, codes = torch.unique(codes, return_inverse=True)
    return centroids[kept], codes


def _lloyd(blocks: Tensor, mass: Tensor | None, k: int, iterations: int, generator: torch.Generator, backend: Backend) -> Tensor:
    """Moves each centroid to the weighted mean of its blocks, again and again; the blocks are in random order."""
    search = _search(blocks, mass, backend)
    centroids = _first(blocks[: _FIRST * k], None if mass is None else mass[: _FIRST * k], k, generator, backend)
    mass = torch.ones_like(blocks[:, :1]) if mass is None else mass
    moments = mass * blocks
    codes = search(centroids)
    for _ in range(iterations):
        total = _sums(mass, codes, k, backend)
        centroids = _sums(moments, codes, k, backend) / total
        empty = (total[:, 0] == 0).nonzero()[:, 0]
        if len(empty):
            centroids[empty] = _drawn(blocks, mass, centroids[codes], len(empty), generator)
        last, codes = codes, search(centroids)
        if torch.equal(codes, last):
            break
    return centroids


def _first(blocks: Tensor, mass: Tensor | None, k: int, generator: torch.Generator, backend: Backend) -> Tensor:
    """The centroids to start with, drawn as k-means++ does, but each time as many as there are."""
    search = _search(blocks, mass, backend)
    centroids = blocks[:1]
    while (count := len(centroids)) < k:
        decoded = centroids[search(centroids)]
        centroids = torch.cat([centroids, _drawn(blocks, 1.0 if mass is None else mass, decoded, min(count, k - count), generator)])
    return centroids


def _drawn(blocks: Tensor, mass: Tensor | float, decoded: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Blocks drawn with the probability of their error, which splits the clusters that have most of it."""
    error = (mass * (blocks - decoded).square()).sum(1).cpu()
    return blocks[torch.multinomial(error + _TINY, count, generator=generator).to(blocks.device)]


def _sums(values: Tensor, codes: Tensor, k: int, backend: Backend) -> Tensor:
    """[k, ...] sums of the values [N, ...] of each code, added in a fixed order."""
    if backend == "faiss":
        return values.new_zeros(k, values.shape[1]).index_add_(0, codes, values)
    in_order = torch.argsort(codes, stable=True)  # index_add_ of a GPU adds as it comes, and would not give the same codes every time
    return torch.segment_reduce(values[in_order], "sum", lengths=torch.bincount(codes, minlength=k), axis=0)


def _chosen(backend: Backend | None, blocks: Tensor) -> Backend:
    return backend or ("faiss" if blocks.device.type == "cpu" else "torch")


def _mass(weights: Tensor | None) -> Tensor | None:
    """Weights around 1, none of them 0."""
    if weights is None:
        return None
    if not torch.isfinite(weights).all() or bool((weights < 0).any()):
        raise CompressionError(
            "the weights of a k-means must be finite and not negative; look for NaN, or values above 1e18, in the calibration inputs"
        )
    scaled = weights / (_mean(weights) or 1.0)
    return scaled + _TRACE * scaled.mean(1, keepdim=True) + _LEAST


def _mean(values: Tensor) -> float:
    """The mean; in double precision it does not show how many threads shared the sum."""
    return float(values.mean(dtype=torch.float64).float())


def _search(blocks: Tensor, mass: Tensor | None, backend: Backend) -> Callable[[Tensor], Tensor]:
    """A function from centroids to the nearest one for each block. What does not depend on the centroids is computed here, once.

    A weighted distance is a product, but for what a block adds to all of them alike: sum w(x - c)^2 = sum wx^2 - <[-w, 2wx], [c^2, c]>.
    Where all vectors have norm 1, which takes the right ones another coordinate, the largest product is the least distance. So one search
    serves both. What float32 rounds off is, in parts of the largest product, 1e-7: only a centroid 100 times the usual would show.
    """
    find = _find_faiss if backend == "faiss" else _find_torch
    if mass is None:
        return partial(find, blocks.contiguous())
    scale = _mean(blocks.abs()) or 1.0  # squares and products then have one order of magnitude
    left = F.normalize(torch.cat([-mass, 2 * mass * (blocks / scale), torch.zeros_like(blocks[:, :1])], 1), eps=_TINY)

    def weighted(centroids: Tensor) -> Tensor:
        right = torch.cat([(centroids / scale).square(), centroids / scale], 1)
        squares = right.square().sum(1, keepdim=True)
        largest = squares.max().clamp_min(_TINY)
        return find(left, torch.cat([right, (largest - squares).sqrt()], 1) / largest.sqrt())

    return weighted


def _find_faiss(left: Tensor, right: Tensor) -> Tensor:
    import faiss  # not above: loading a compressed model needs no k-means

    _, codes = faiss.knn(left.numpy(), right.contiguous().numpy(), 1)
    return torch.from_numpy(codes[:, 0].copy())


def _find_torch(left: Tensor, right: Tensor) -> Tensor:
    squares = right.square().sum(1)
    parts = left.tensor_split(-(-len(left) * len(right) // _PAIRS) or 1)
    with torch.autocast(left.device.type, enabled=False):  # squares of int8 centroids are beyond float16
        return torch.cat([least(torch.addmm(squares, part, right.T, alpha=-2)) for part in parts])
