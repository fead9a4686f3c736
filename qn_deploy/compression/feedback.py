"""Error feedback: what a block of a row loses when it is coded is made up for by the blocks that are coded after it.

A layer with inputs x loses E|(W - Q) x|^2 = tr (W - Q) H (W - Q)^T with H = E[x x^T], which is not what k-means makes small. So blocks
are coded from the first column to the last, each time by the loss that is left when all later weights of the row move to make up for
it, as in GPTQ (Frantar et al. 2023), and GPTVQ for codebooks (van Baalen et al. 2024). Then centroids move to where the loss is least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qn_deploy.compression.moments import Moments
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.recipe import Int4, Int8, Table
from qn_deploy.weights.compressed import IntWeight, PQWeight, book_offsets
from qn_deploy.weights.grid import limit, row_scale
from qn_deploy.weights.kmeans import Effort, used
from qn_deploy.weights.tables import as_weight, codebooks, grid_step, groups, normalised

_FIRST = Effort(iterations=10, sample=256)  # of the k-means, whose centroids are only the first
CENTRED = __import__("os").environ.get("CEN")=="1"
_AT_ONCE = 128  # weights of a row that are coded before the rest of it is moved
_REFIT_STEPS, _LAST_STEPS = 2, 10  # of conjugate gradients: few while codes still change, more once they stay
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Feedback:
    """How weights are compressed with inputs.

    Attributes:
        damping: added to the diagonal of H, as a share of its mean: H is known from a sample only.
        correction: how far a weight first moves to where its layer, after compressed layers, best gives what the float model's gives;
            0 is not at all, 1 all the way, which trusts the inputs more than half does.
        correction_damping: as `damping`, for this move.
        rounds: how often codes are chosen and centroids refitted.

    Raises:
        InputError: numbers out of these ranges.
    """

    damping: float = 0.01
    correction: float = 0.5
    correction_damping: float = 0.1
    rounds: int = 5

    def __post_init__(self) -> None:
        if min(self.damping, self.correction_damping) <= 0 or not 0 <= self.correction <= 1 or self.rounds < 1:
            raise InputError(
                f"damping {self.damping} and {self.correction_damping}, correction {self.correction}, rounds {self.rounds}; "
                "expected more than 0, 0 to 1, 1 or more"
            )


@dataclass(frozen=True)
class Curvature:
    """What the inputs of a layer say about all weights that read them; computed once for all.

    Attributes:
        gram: float32 [groups, n, n], H, damped.
        upper: float32 [groups, n, n], the upper Cholesky factor of its inverse.
        move: float32 [groups, n, n]; rows V of a weight first become V + V @ move.
        mean: float32 [groups, 1, n], the mean input, if a bias makes up for what it loses; else None, and H holds it.
        their_mean: the same, of the float model.
    """

    gram: Tensor
    upper: Tensor
    move: Tensor
    mean: Tensor | None = None
    their_mean: Tensor | None = None

    @classmethod
    def of(cls, moments: Moments, config: Feedback, bias: bool = False) -> Curvature:
        """With student inputs x and the float model's y, the rows V that make E|V x - W y|^2 least are W + W E[(y - x) x^T] H^-1.

        Args:
            moments: of the inputs.
            config: how much is added to H's diagonal, and how far weights move.
            bias: the readers add one, which takes up all of what the mean input loses: H is then the covariance.

        Raises:
            CompressionError: the moments are not finite.
        """
        assert moments.gram is not None and moments.cross is not None
        if not torch.isfinite(moments.gram).all() or not torch.isfinite(moments.cross).all():
            raise CompressionError("its inputs hold NaN or infinity; look for it in the batches")
        # A matrix of a wide layer is large, and twice as large in float64: few of them live at once.
        move, gram, mean, their_mean = moments.cross - moments.gram, moments.gram, None, None
        level = _level(gram)
        if bias:
            assert moments.ones is not None and moments.means is not None and moments.their_means is not None
            mean, their_mean = moments.means / moments.ones, moments.their_means / moments.ones
            gram = torch.baddbmm(gram, moments.means.mT, mean, alpha=-1)
            move.baddbmm_((moments.their_means - moments.means).mT, mean, alpha=-1)
            if CENTRED: level = _level(gram)
        if config.correction and move.any():
            lower = torch.linalg.cholesky(_damped(gram, config.correction_damping * level).double())
            for part in torch.split(move, _AT_ONCE, 1):
                part.copy_(config.correction * torch.cholesky_solve(part.mT.double(), lower).mT)
            del lower
        else:
            move.zero_()
        gram = _damped(gram, config.damping * level)
        return cls(gram, _factor(gram), move, mean, their_mean)

    def rows(self, weight: Tensor) -> Tensor:
        """The rows [groups, out, n] to approximate.

        Raises:
            CompressionError: the weight is not finite.
        """
        if not torch.isfinite(weight).all():
            raise CompressionError("the weight holds NaN or infinity; find the training step that made it")
        rows = weight.detach().float().reshape(len(self.move), -1, self.move.shape[1])
        return rows + rows @ self.move

    def bias(self, old: Tensor, weight: Tensor, became: Tensor) -> Tensor:
        """The bias with which a compressed weight gives, in the mean, what the float model's layer gives.

        Args:
            old: float32 [out].
            weight: float32 [out, ...].
            became: the compressed one, of the same shape.
        """
        if self.mean is None or self.their_mean is None:
            return old
        theirs, ours = (
            (value.reshape(len(mean), -1, mean.shape[2]) @ mean.mT).flatten()
            for value, mean in ((weight, self.their_mean), (became, self.mean))
        )
        return old + theirs - ours


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
    best, least = None, inf
    for left in reversed(range(rounds)):
        codes = assign(rows / scale, upper, books)
        steps = _REFIT_STEPS if left else _LAST_STEPS
        books, scale = _on_grid(refit(rows / scale, gram, books, codes, scale.square(), steps), scale)
        lost = rows - scale * _decoded(books, codes).reshape(rows.shape)
        loss = float((lost @ gram).mul_(lost).sum())
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

    _fed_back(rows / scale.expand(len(flat)).reshape(*rows.shape[:2], 1), curvature.upper, 1, rounded)
    return IntWeight(values.to(torch.int8).reshape(weight.shape), scale, method.bits)


def assign(rows: Tensor, upper: Tensor, books: Tensor) -> Tensor:
    """The codes of rows, chosen column after column with error feedback.

    Args:
        rows: float32 [groups, out, n], in the unit of the centroids; each group of rows has inputs of its own.
        upper: float32 [groups, n, n], the upper Cholesky factor of the inverse of H.
        books: float32 [G, K, d]; block column i reads codebook i*G // B.

    Returns:
        int64 [groups * out, B].
    """
    d, columns = books.shape[2], rows.shape[2] // books.shape[2]
    codes = torch.empty(*rows.shape[:2], columns, dtype=torch.int64)

    def chosen(column: int, points: Tensor, whiten: Tensor) -> Tensor:
        # A block's loss is |error @ whiten|^2, what is left of it when all later weights make up for it as well as they can.
        book = books[column * len(books) // columns]
        codes[:, :, column] = _nearest(points @ whiten, book @ whiten)
        return F.embedding(codes[:, :, column], book)

    _fed_back(rows, upper, d, chosen)
    return codes.flatten(0, 1)


def refit(rows: Tensor, gram: Tensor, books: Tensor, codes: Tensor, weights: Tensor, steps: int = 30) -> Tensor:
    """The centroids of least loss for given codes, by conjugate gradients; a centroid of zeros stays, dead rows rely on it.

    Args:
        rows: float32 [groups, out, n], in the unit of the centroids.
        gram: float32 [groups, n, n], H.
        books: float32 [G, K, d], to start from.
        codes: int64 [groups * out, B].
        weights: float32 [groups, out, 1], what the loss of each row counts.
        steps: of conjugate gradients.

    Returns:
        float32 [G, K, d].
    """
    index = _rows(books, codes).flatten()
    table, row = books.flatten(0, 1), weights.flatten()[:, None].expand_as(codes).flatten()
    mass = torch.bincount(index, row, minlength=len(table)).float()
    free = (mass > 0) & table.any(1)
    inverse = torch.where(free, 1 / mass, 0.0)[:, None]  # of the equations' diagonal, but for a factor: makes them well conditioned
    order = torch.argsort(index, stable=True).int()
    first = torch.bincount(index, minlength=len(table)).cumsum(0).roll(1)
    first[0] = 0
    bags = first.int()

    def pull(lost: Tensor) -> Tensor:
        """[G*K, d]: what the loss of rows asks of their centroids."""
        blocks = (lost @ gram).mul_(weights).reshape(-1, books.shape[2])
        return F.embedding_bag(order, blocks, bags, mode="sum")

    residual = pull(rows - F.embedding(index, table).reshape(rows.shape))
    direction = scaled = inverse * residual
    power = (residual * scaled).sum()
    for _ in range(steps):
        bent = pull(F.embedding(index, direction).reshape(rows.shape))
        step = power / (direction * bent).sum().clamp_min(_TINY)
        table, residual = table + step * direction, residual - step * bent
        scaled = inverse * residual
        last, power = power, (residual * scaled).sum()
        direction = scaled + power / last.clamp_min(_TINY) * direction
    return table.reshape(books.shape)


def _fed_back(rows: Tensor, upper: Tensor, d: int, choose: Callable[[int, Tensor, Tensor], Tensor]) -> None:
    """Goes through the block columns of rows [groups, out, n]: `choose` takes a column's number, its blocks [groups, out, d] as the
    columns before have left them, and [groups, d, d] by which errors are measured; it gives what the blocks become.
    """
    rest, n = rows.clone(), rows.shape[2]
    corners = upper.reshape(-1, n // d, d, n // d, d).diagonal(dim1=1, dim2=3).permute(3, 0, 1, 2)
    whiten = torch.linalg.inv(corners)  # [B, groups, d, d]
    wide = max(1, _AT_ONCE // d) * d
    for begin in range(0, n, wide):
        end = min(begin + wide, n)
        errors = torch.empty_like(rest[:, :, begin:end])
        for first in range(begin, end, d):
            here, later = slice(first, first + d), slice(first + d, end)
            points = rest[:, :, here]
            error = (points - choose(first // d, points, whiten[first // d])) @ whiten[first // d]
            errors[:, :, first - begin : first - begin + d] = error
            rest[:, :, later].baddbmm_(error, upper[:, here, later], alpha=-1)
        if end < n:
            rest[:, :, end:].baddbmm_(errors, upper[:, begin:end, end:], alpha=-1)


def _nearest(points: Tensor, keys: Tensor) -> Tensor:
    """int64 [groups, out]: for each of the points [groups, out, d] the nearest of its group's keys [groups, K, d].

    For these few points a product is twice as fast as faiss, and it takes all groups at once.
    """
    return torch.baddbmm(keys.square().sum(2)[:, None], points, keys.mT, alpha=-2).argmin(2)


def _level(gram: Tensor) -> Tensor:
    """[groups, 1], what damping is a share of: the mean diagonal."""
    mean = gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
    return torch.where(mean > _TINY, mean, 1.0)  # inputs next to zero say nothing: all weights count alike


def _damped(gram: Tensor, extra: Tensor) -> Tensor:
    """A copy with something added to the diagonal of each group."""
    damped = gram.clone()
    damped.diagonal(dim1=1, dim2=2).add_(extra)
    return damped


def _factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse, computed in float64: float32 can fail where inputs go together closely."""
    # Flipped, gram is L L^T; so it is R R^T with the upper R, L flipped, and its inverse is U^T U with U = R^-1: no inverse is needed.
    lower = torch.linalg.cholesky(gram.flip(1, 2).double())
    inverse = torch.eye(gram.shape[1], dtype=lower.dtype).repeat(len(gram), 1, 1)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    return inverse.float().flip(1, 2)


def _on_grid(books: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids as whole numbers in int8's reach, and the scale [groups, out, 1] of the rows that goes with them."""
    step = grid_step([*books])
    return (books / step).round(), scale * step


def _decoded(books: Tensor, codes: Tensor) -> Tensor:
    """[out, B * d] from the codebooks [G, K, d]."""
    return F.embedding(_rows(books, codes), books.flatten(0, 1)).flatten(1)


def _rows(books: Tensor, codes: Tensor) -> Tensor:
    """For each code [out, B] its row in the codebooks laid end to end."""
    count, size, _ = books.shape
    return codes + book_offsets(codes.shape[1], count, size)
