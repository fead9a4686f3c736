"""Error feedback: what a block of a row loses when it is coded is made up for by the blocks that are coded after it.

What a layer loses on its inputs is not what k-means makes small. So blocks are coded from the first column to the last, each time by the
loss that is left when all later weights of the row move to make up for it, as in GPTQ (Frantar et al. 2023), and GPTVQ for codebooks (van
Baalen et al. 2024). Centroids move to where the loss is least, and each code is looked at again beside all the others.
"""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qn_deploy.compression.codes import assign, fed_back, improved, left, refit
from qn_deploy.compression.curvature import Curvature, Feedback
from qn_deploy.recipe import Int4, Int8, Table
from qn_deploy.weights.compressed import IntWeight, PQWeight
from qn_deploy.weights.grid import limit, row_scale
from qn_deploy.weights.kmeans import Effort, used
from qn_deploy.weights.tables import as_weight, codebooks, grid_step, groups, normalised

_FIRST = Effort(iterations=10, sample=256)  # of the k-means, whose centroids are only the first
_FRESH = 2  # rounds that choose all codes anew; later ones improve on those that are there
_REFIT_STEPS, _LAST_STEPS = 2, 10  # of conjugate gradients: few while codes still change, more once they stay


def table_with_feedback(
    weight: Tensor, method: Table, curvature: Curvature, rounds: int = Feedback.rounds, seed: int = 0, per_channel: bool = True
) -> PQWeight:
    """`tables.table_from_weight` for a weight whose inputs are known; the table takes as many bytes, or fewer.

    Args:
        weight: float [out, ...], of a linear layer or a convolution.
        method: block size, number of centroids and of codebooks; no residual codebook.
        curvature: of the layer's inputs.
        rounds: how often codes are chosen and centroids refitted.
        seed: of the k-means.
        per_channel: False gives one scale for the whole weight.

    Raises:
        CompressionError: the block size doesn't divide a row, or the weight isn't finite.
    """
    rows, gram, upper = curvature.rows(weight), curvature.gram, curvature.upper
    blocks, scale, live = normalised(rows.flatten(0, 1), method.block_size, per_channel)
    scale = scale.reshape(*rows.shape[:2], 1)
    importance = scale.square() * gram.diagonal(dim1=1, dim2=2)[:, None]
    count = method.books(*blocks.shape[:2])
    found = codebooks(blocks, count, method.centroids, live, seed, importance.reshape(blocks.shape), _FIRST)
    books, scale = _on_grid(pad_sequence(found, batch_first=True), scale)
    codes = pull = torch.empty(0)
    best, least = None, inf
    for index in range(rounds):
        if index < _FRESH:
            codes = assign(rows / scale, upper, books)
            pull = left(rows / scale, books, codes) @ gram
        else:
            codes = improved(pull, gram, books, codes)
        steps = _REFIT_STEPS if index < rounds - 1 else _LAST_STEPS
        books, scale = _on_grid(refit(pull, gram, books, codes, scale.square(), steps), scale)
        lost = left(rows / scale, books, codes)
        pull = lost @ gram
        loss = float((lost.mul_(pull).sum(2, keepdim=True) * scale.square()).sum())
        if loss < least:  # new codes are better by the feedback's rule, which looks ahead, but not always when all is done
            best, least = (books, codes, scale), loss
    assert best is not None
    books, codes, scale = best
    assigned = [used(book, codes[:, columns]) for columns, book in zip(groups(codes.shape[1], len(books)), books, strict=True)]
    return as_weight(assigned, scale.flatten()[: None if per_channel else 1], tuple(weight.shape))


def integers_with_feedback(weight: Tensor, method: Int8 | Int4, curvature: Curvature, per_channel: bool = True) -> IntWeight:
    """`IntWeight.from_float` for a weight whose inputs are known.

    Raises:
        CompressionError: the weight isn't finite.
    """
    rows = curvature.rows(weight)
    flat, top = rows.flatten(0, 1), limit(method.bits)
    scale = row_scale(flat if per_channel else flat.reshape(1, -1), method)
    values = torch.empty_like(rows)

    def rounded(column: int, points: Tensor, whiten: Tensor) -> Tensor:
        chosen = values[:, :, column, None] = points.round().clamp_(-top, top)
        return chosen

    fed_back(rows / scale.expand(len(flat)).reshape(*rows.shape[:2], 1), curvature.upper, 1, rounded)
    return IntWeight(values.to(torch.int8).reshape(weight.shape), scale, method.bits)


def _on_grid(books: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids as whole numbers in int8's reach, and the scale [groups, out, 1] of the rows that goes with them."""
    step = grid_step([*books])
    return (books / step).round(), scale * step
