"""Error feedback: what a block of a row loses when it is coded is made up for by the blocks that are coded after it.

A layer with inputs x loses E|(W - Q) x|^2 = tr (W - Q) H (W - Q)^T with H = E[x x^T], which is not what k-means makes small. So blocks
are coded from the first column to the last, each time by the loss that is left when all later weights of the row move to make up for
it, as in GPTQ (Frantar et al. 2023), and GPTVQ for codebooks (van Baalen et al. 2024). Then centroids move to where the loss is least.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qn_deploy.compression.kmeans import nearest, used
from qn_deploy.compression.moments import Moments
from qn_deploy.compression.tables import as_weight, codebooks, grid_step, groups, normalised
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.recipe import Int4, Int8, Table
from qn_deploy.weights.compressed import IntWeight, PQWeight, book_offsets
from qn_deploy.weights.grid import limit, row_scale

_AT_ONCE = 128  # weights of a row that are coded before the rest of it is moved
_REFIT_STEPS = 30  # of conjugate gradients
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Feedback:
    """How weights are compressed with calibration inputs.

    Attributes:
        damping: added to the diagonal of H, as a share of its mean: H is known from a sample only.
        correction: how far a weight first moves to where its layer, behind compressed layers, best gives what the float model's gives;
            0 is not at all, 1 all the way, which trusts the calibration inputs more than half does.
        correction_damping: as `damping`, for this move.
        rounds: how often codes are chosen and centroids refitted.

    Raises:
        InputError: numbers out of these ranges.
    """

    damping: float = 0.01
    correction: float = 0.5
    correction_damping: float = 0.1
    rounds: int = 3

    def __post_init__(self) -> None:
        if min(self.damping, self.correction_damping) <= 0 or not 0 <= self.correction <= 1 or self.rounds < 1:
            raise InputError(
                f"damping {self.damping} and {self.correction_damping}, correction {self.correction}, rounds {self.rounds}; "
                "expected more than 0, 0 to 1, 1 or more"
            )


def table_with_feedback(
    weight: Tensor, method: Table, moments: Moments, config: Feedback, seed: int = 0, per_channel: bool = True
) -> PQWeight:
    """`tables.table_from_weight` for a weight whose inputs are known; the table takes as many bytes, or fewer.

    Args:
        weight: float [out, ...], of a linear layer or a convolution.
        method: block size, number of centroids and of codebooks; no residual codebook.
        moments: of the layer's inputs; `gram` is not None.
        config: damping, rounds.
        seed: of the k-means.
        per_channel: False gives one scale for the whole weight.

    Raises:
        CompressionError: the block size doesn't divide a row, or the weight or the moments aren't finite.
    """
    rows, gram = _corrected(weight, moments, config)
    blocks, scale, live = normalised(rows.flatten(0, 1), method.block_size, per_channel)
    scale = scale.reshape(*rows.shape[:2], 1)
    importance = scale.square() * gram.diagonal(dim1=1, dim2=2)[:, None]
    found = codebooks(blocks, method.books(*blocks.shape[:2]), method.centroids, live, seed, importance.reshape(blocks.shape))
    books, scale = _on_grid(pad_sequence(found, batch_first=True), scale)
    upper = _factor(gram)
    best, least = None, inf
    for _ in range(config.rounds):
        codes = assign(rows / scale, upper, books)
        books, scale = _on_grid(refit(rows / scale, gram, books, codes, scale.square()), scale)
        lost = rows - scale * _decoded(books, codes).reshape(rows.shape)
        loss = float((lost @ gram * lost).sum())
        if loss < least:  # new codes are better by the feedback's rule, which looks ahead, but not always when all is done
            best, least = (books, codes, scale), loss
    assert best is not None
    books, codes, scale = best
    assigned = [used(book, codes[:, columns]) for columns, book in zip(groups(codes.shape[1], len(books)), books, strict=True)]
    return as_weight(assigned, scale.flatten()[: None if per_channel else 1], tuple(weight.shape))


def integers_with_feedback(weight: Tensor, method: Int8 | Int4, moments: Moments, config: Feedback, per_channel: bool = True) -> IntWeight:
    """`IntWeight.from_float` for a weight whose inputs are known: a table of single values, whose only codebook is the grid.

    Raises:
        CompressionError: the weight or the moments aren't finite.
    """
    rows, gram = _corrected(weight, moments, config)
    flat, top = rows.flatten(0, 1), limit(method.bits)
    scale = row_scale(flat if per_channel else flat.reshape(1, -1), method)
    grid = torch.arange(-top, top + 1, dtype=torch.float32).reshape(1, -1, 1)
    codes = assign(rows / scale.expand(len(flat)).reshape(*rows.shape[:2], 1), _factor(gram), grid)
    return IntWeight((codes - top).to(torch.int8).reshape(weight.shape), scale, method.bits)


def assign(rows: Tensor, upper: Tensor, books: Tensor) -> Tensor:
    """The codes of rows, chosen column after column with error feedback.

    Args:
        rows: float32 [groups, out, n], in the unit of the centroids; each group of rows has inputs of its own.
        upper: float32 [groups, n, n], the upper Cholesky factor of the inverse of H.
        books: float32 [G, K, d]; block column i reads codebook i*G // B.

    Returns:
        int64 [groups * out, B].
    """
    d = books.shape[2]
    columns = rows.shape[2] // d
    rest, codes = rows.clone(), torch.empty(*rows.shape[:2], columns, dtype=torch.int64)
    # A block's loss is |error @ whiten|^2, what is left of it when all later weights make up for it as well as they can.
    corners = upper.reshape(-1, columns, d, columns, d).diagonal(dim1=1, dim2=3).permute(3, 0, 1, 2)
    whiten = torch.linalg.inv(corners)  # [B, groups, d, d]
    wide = max(1, _AT_ONCE // d)
    for first in range(0, columns, wide):
        last = min(first + wide, columns)
        begin, end = d * first, d * last
        errors = torch.empty_like(rest[:, :, begin:end])
        for column in range(first, last):
            here, later = slice(d * column, d * (column + 1)), slice(d * (column + 1), end)
            keys = books[column * len(books) // columns] @ whiten[column]  # [groups, K, d]
            points = rest[:, :, here] @ whiten[column]  # [groups, out, d]
            chosen = torch.stack([nearest(*pair) for pair in zip(points, keys, strict=True)])
            codes[:, :, column] = chosen
            error = points - keys.take_along_dim(chosen[:, :, None], 1)
            errors[:, :, here.start - begin : here.stop - begin] = error
            rest[:, :, later] -= error @ upper[:, here, later]
        rest[:, :, end:] -= errors @ upper[:, begin:end, end:]
    return codes.flatten(0, 1)


def refit(rows: Tensor, gram: Tensor, books: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """The centroids of least loss for given codes, by conjugate gradients; a centroid of zeros stays, dead rows rely on it.

    Args:
        rows: float32 [groups, out, n], in the unit of the centroids.
        gram: float32 [groups, n, n], H.
        books: float32 [G, K, d], to start from.
        codes: int64 [groups * out, B].
        weights: float32 [groups, out, 1], what the loss of each row counts.

    Returns:
        float32 [G, K, d].
    """
    index = _rows(books, codes).flatten()
    table, row = books.flatten(0, 1), weights.flatten()[:, None].expand_as(codes).flatten()
    mass = row.new_zeros(len(table)).index_add_(0, index, row)
    free = (mass > 0) & table.any(1)
    inverse = torch.where(free, 1 / mass, 0.0)[:, None]  # of the equations' diagonal, but for a factor: makes them well conditioned

    def pull(lost: Tensor) -> Tensor:
        """[G*K, d]: what the loss of rows asks of their centroids."""
        return torch.zeros_like(table).index_add_(0, index, (weights * lost @ gram).reshape(-1, books.shape[2]))

    residual = pull(rows - table[index].reshape(rows.shape))
    direction = scaled = inverse * residual
    power = (residual * scaled).sum()
    for _ in range(_REFIT_STEPS):
        bent = pull(direction[index].reshape(rows.shape))
        step = power / (direction * bent).sum().clamp_min(_TINY)
        table, residual = table + step * direction, residual - step * bent
        scaled = inverse * residual
        last, power = power, (residual * scaled).sum()
        direction = scaled + power / last.clamp_min(_TINY) * direction
    return table.reshape(books.shape)


def _corrected(weight: Tensor, moments: Moments, config: Feedback) -> tuple[Tensor, Tensor]:
    """The rows [groups, out, n] to approximate, and H [groups, n, n]; float32, on the CPU.

    With student inputs x and the float model's y, the rows V that make E|V x - W y|^2 least are W + W E[(y - x) x^T] H^-1.
    """
    assert moments.gram is not None and moments.cross is not None
    gram, cross = moments.gram.cpu().double(), moments.cross.cpu().double()
    if not torch.isfinite(weight).all():
        raise CompressionError("the weight holds NaN or infinity; find the training step that made it")
    if not torch.isfinite(gram).all() or not torch.isfinite(cross).all():
        raise CompressionError("its calibration inputs hold NaN or infinity; look for it in the calibration batches")
    rows = weight.detach().cpu().double().reshape(len(gram), -1, gram.shape[1])
    move = torch.linalg.solve(_damped(gram, config.correction_damping), rows @ (cross - gram), left=False)
    return (rows + config.correction * move).float(), _damped(gram, config.damping).float()


def _damped(gram: Tensor, damping: float) -> Tensor:
    mean = gram.diagonal(dim1=1, dim2=2).mean(1)
    mean = torch.where(mean > 0, mean, 1.0)  # inputs that are always zero say nothing, so that all weights count alike
    return gram + torch.diag_embed((damping * mean)[:, None].expand(gram.shape[:2]))


def _factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram.double()))  # float32 can fail where inputs go together closely
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()


def _on_grid(books: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Centroids as whole numbers in int8's reach, and the scale [groups, out, 1] of the rows that goes with them."""
    step = grid_step([*books])
    return (books / step).round(), scale * step


def _decoded(books: Tensor, codes: Tensor) -> Tensor:
    """[out, B * d] from the codebooks [G, K, d]."""
    return books.flatten(0, 1)[_rows(books, codes)].flatten(1)


def _rows(books: Tensor, codes: Tensor) -> Tensor:
    """For each code [out, B] its row in the codebooks laid end to end."""
    count, size, _ = books.shape
    return codes + book_offsets(codes.shape[1], count, size)
