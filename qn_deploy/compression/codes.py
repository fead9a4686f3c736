"""The codes and the centroids of a table, each chosen for the other, by what a layer loses on its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from qn_deploy.compression.rate import Price
from qn_deploy.weights.compressed import book_offsets
from qn_deploy.weights.kmeans import least

_AT_ONCE = 128  # weights of a row that are coded before the rest of it is moved
_TINY = torch.finfo(torch.float32).tiny


def assign(rows: Tensor, upper: Tensor, books: Tensor, price: Price | None = None) -> Tensor:
    """The codes of rows, chosen column after column with error feedback.

    Args:
        rows: float32 [groups, out, n], in the unit of the centroids; each group of rows has inputs of its own.
        upper: float32 [groups, n, n], the upper Cholesky factor of the inverse of H.
        books: float32 [G, K, d]; block column i reads codebook i*G // B.
        price: of the codes' bits; None counts what is lost alone.

    Returns:
        int64 [groups * out, B].
    """
    d, columns = books.shape[2], rows.shape[2] // books.shape[2]
    codes = torch.empty(*rows.shape[:2], columns, dtype=torch.int64)

    def chosen(column: int, points: Tensor, whiten: Tensor) -> Tensor:
        # A block's loss is |error @ whiten|^2, what is left of it when all later weights make up for it as well as they can.
        book = books[column * len(books) // columns]
        costs = None if price is None else price.of_column(column, columns)
        codes[:, :, column] = nearest_of(points @ whiten, book @ whiten, costs)
        return F.embedding(codes[:, :, column], book)

    fed_back(rows, upper, d, chosen)
    return codes.flatten(0, 1)


def improved(pull: Tensor, gram: Tensor, books: Tensor, codes: Tensor, price: Price | None = None) -> Tensor:
    """Codes that lose no more: column after column, each block takes the centroid that is best beside what all others became.

    Error feedback looks ahead only, and to weights that can move freely; here what comes later counts as it was coded.

    Args:
        pull: float32 [groups, out, n], what these codes leave of the rows, times H; it becomes that of the new codes.
        gram: float32 [groups, n, n], H.
        books: float32 [G, K, d].
        codes: int64 [groups * out, B], to start from.
        price: of the codes' bits; None counts what is lost alone.

    Returns:
        int64 [groups * out, B].
    """
    d, columns = books.shape[2], pull.shape[2] // books.shape[2]
    codes = codes.reshape(*pull.shape[:2], columns).clone()
    lower = torch.linalg.cholesky(_corners(gram, d))  # [B, groups, d, d]
    inverse = torch.cholesky_inverse(lower)
    for begin, end in _stretches(pull.shape[2], d):
        near, moved = pull[:, :, begin:end].clone(), torch.empty_like(pull[:, :, begin:end])
        for first in range(begin, end, d):
            column, here = first // d, slice(first - begin, first - begin + d)
            book = books[column * len(books) // columns]
            old = F.embedding(codes[:, :, column], book)
            points = old + near[:, :, here] @ inverse[column]
            costs = None if price is None else price.of_column(column, columns)
            codes[:, :, column] = nearest_of(points @ lower[column], book @ lower[column], costs)
            moved[:, :, here] = F.embedding(codes[:, :, column], book) - old
            near.baddbmm_(moved[:, :, here], gram[:, first : first + d, begin:end], alpha=-1)
        pull.baddbmm_(moved, gram[:, begin:end], alpha=-1)
    return codes.flatten(0, 1)


def refit(pull: Tensor, gram: Tensor, books: Tensor, codes: Tensor, weights: Tensor, steps: int = 30) -> Tensor:
    """The centroids of least loss for given codes, by conjugate gradients; a centroid of zeros stays, dead rows rely on it.

    Args:
        pull: float32 [groups, out, n], what codes and centroids leave of the rows, times H; overwritten.
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

    def gathered(pull: Tensor) -> Tensor:
        """[G*K, d]: what the loss of rows asks of their centroids."""
        return F.embedding_bag(order, pull.mul_(weights).reshape(-1, books.shape[2]), bags, mode="sum")

    residual = gathered(pull)
    direction = scaled = inverse * residual
    power = (residual * scaled).sum()
    for _ in range(steps):
        bent = gathered(F.embedding(index, direction).reshape(pull.shape) @ gram)
        step = power / (direction * bent).sum().clamp_min(_TINY)
        table, residual = table + step * direction, residual - step * bent
        scaled = inverse * residual
        last, power = power, (residual * scaled).sum()
        direction = scaled + power / last.clamp_min(_TINY) * direction
    return table.reshape(books.shape)


def fed_back(rows: Tensor, upper: Tensor, d: int, choose: Callable[[int, Tensor, Tensor], Tensor]) -> None:
    """Goes through the block columns of rows [groups, out, n]: `choose` takes a column's number, its blocks [groups, out, d] as the
    columns before have left them, and [groups, d, d] by which errors are measured; it gives what the blocks become.
    """
    rest, n = rows.clone(), rows.shape[2]
    whiten = torch.linalg.inv(_corners(upper, d))  # [B, groups, d, d]
    for begin, end in _stretches(n, d):
        errors = torch.empty_like(rest[:, :, begin:end])
        for first in range(begin, end, d):
            here, later = slice(first, first + d), slice(first + d, end)
            points = rest[:, :, here]
            error = (points - choose(first // d, points, whiten[first // d])) @ whiten[first // d]
            errors[:, :, first - begin : first - begin + d] = error
            rest[:, :, later].baddbmm_(error, upper[:, here, later], alpha=-1)
        if end < n:
            rest[:, :, end:].baddbmm_(errors, upper[:, begin:end, end:], alpha=-1)


def nearest_of(points: Tensor, keys: Tensor, price: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """int64 [groups, out]: for each of the points [groups, out, d] the nearest of its group's keys [groups, K, d].

    A price, worth [groups, out, 1] and bits [K], adds their product to the squared distances: to the dot product, it is one more dimension.
    For these few points a product is twice as fast as faiss, and it takes all groups at once.
    """
    lengths = keys.square().sum(2)[:, None]
    if price is not None:
        worth, bits = price
        points = torch.cat([points, worth], 2)
        keys = torch.cat([keys, (bits / -2)[None, :, None].expand(len(keys), -1, 1)], 2)
    return least(torch.baddbmm(lengths, points, keys.mT, alpha=-2))


def _stretches(n: int, d: int) -> Iterator[tuple[int, int]]:
    """Where stretches of whole blocks begin and end, of at most so many weights of a row as are coded at once."""
    wide = max(1, _AT_ONCE // d) * d
    return ((begin, min(begin + wide, n)) for begin in range(0, n, wide))


def _corners(matrix: Tensor, d: int) -> Tensor:
    """[B, groups, d, d]: the blocks on the diagonal of matrices [groups, B * d, B * d]."""
    n = matrix.shape[1]
    return matrix.reshape(-1, n // d, d, n // d, d).diagonal(dim1=1, dim2=3).permute(3, 0, 1, 2)


def left(rows: Tensor, books: Tensor, codes: Tensor) -> Tensor:
    """What codes leave of rows [groups, out, n] in the unit of the centroids."""
    return rows - F.embedding(_rows(books, codes), books.flatten(0, 1)).reshape(rows.shape)


def _rows(books: Tensor, codes: Tensor) -> Tensor:
    """For each code [out, B] its row in the codebooks laid end to end."""
    count, size, _ = books.shape
    return codes + book_offsets(codes.shape[1], count, size)
