"""The gradients of a table's weight over some steps, and what they say of other codes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.compression.codes import nearest_of
from qn_deploy.compression.parametrizations import TableWeight
from qn_deploy.weights.compressed import to_int8

_LEAST = 0.01  # of a table's mean square of gradients, added to each block's
_DAMPING = 0.1  # of the mean eigenvalue of a curvature, added to all
_TINY = torch.finfo(torch.float32).tiny


class Move(NamedTuple):
    """What a table could do: the centroid int64 [out, B] that each block would take, and float32 [out, B] what the loss would fall by."""

    codes: Tensor
    centroids: Tensor
    gain: Tensor


class TableGradients:
    """A table whose weight's gradients are summed up.

    Attributes:
        sums: of all steps since the last move: "gradient" float32 [out, B, d]; its "square" float32 [out, B], the mean over d; and how it
            goes "together" in the blocks of a column, float32 [B, d, d], the sum over rows of its outer product.
        listens: gradients are summed up.
    """

    def __init__(self, name: str, table: TableWeight, parameters: list[nn.Parameter]) -> None:
        self.name, self._table, self.listens = name, table, True
        self._scale, self._books = parameters[1], [parameters[0], *parameters[2:]]
        [(codes, _), *_] = table.indexed()
        (out, columns), d = codes.shape, self._books[0].shape[2]
        self.sums = {
            "gradient": torch.zeros(out, columns, d),
            "square": torch.zeros(out, columns),
            "together": torch.zeros(columns, d, d),
        }
        table.register_forward_hook(self._watch)

    def _watch(self, table: nn.Module, inputs: object, weight: Tensor) -> None:
        if weight.requires_grad and self.listens:
            weight.register_hook(self._see)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _see(self, gradient: Tensor) -> None:
        blocks = gradient.reshape(self.sums["gradient"].shape)
        self.sums["gradient"] += blocks
        self.sums["square"] += blocks.square().mean(2)
        self.sums["together"] += torch.einsum("oid,oie->ide", blocks, blocks)

    def forget(self) -> None:
        """Begins anew."""
        for value in self.sums.values():
            value.zero_()

    def unit(self, steps: int) -> float:
        """The root mean square of the weight, times that of its gradient."""
        with torch.no_grad():
            weight = self._table(self._books[0], self._scale, *self._books[1:])
        return float(weight.square().mean().sqrt() * (self.sums["square"].mean() / steps).sqrt())

    @torch.no_grad()
    def moves(self, steps: int, curvature: float) -> list[Move]:
        """What the weight's table could do, or its two tables, of which the better one may.

        The loss is modelled as linear and quadratic in the change of a block: by its mean gradient, and by the second moment of its
        gradient in single steps, which is the curvature up to a factor (Fisher's information). Of a block the trace of that moment is known
        (d x d numbers would be d copies of the weights); its shape is taken from all blocks of its column, which see the same inputs.

        Args:
            steps: whose gradients were summed up.
            curvature: the factor.
        """
        books = [to_int8(book.detach()) for book in self._books]
        indexed = self._table.indexed()
        rows = [codes.int() + offsets for codes, offsets in indexed]
        scale = self._scale.detach().reshape(-1, 1, 1)
        blocks = [F.embedding(chosen, book.flatten(0, 1)) for chosen, book in zip(rows, books, strict=True)]

        gradient, square = (self.sums[kind] / steps for kind in ("gradient", "square"))
        gradient = _believed(gradient, square, steps)
        bend = (curvature * (square + _LEAST * square.mean()))[:, :, None]
        lower = _lower(self.sums["together"])
        step = -_by_column(gradient, torch.cholesky_inverse(lower)) / (bend * scale).clamp_min(_TINY)  # in the unit of the centroids
        found = []
        for (codes, offsets), book, old in zip(indexed, books, blocks, strict=True):
            new = _nearest(_by_column(old + step, lower), book, lower)
            change = (F.embedding(new + offsets, book.flatten(0, 1)) - old) * scale
            gain = -(gradient * change).sum(2) - (bend * _by_column(change, lower).square()).sum(2) / 2
            found.append(Move(codes, new, gain))
        best = torch.stack([move.gain for move in found]).argmax(0)
        return [move._replace(gain=torch.where(best == index, move.gain, 0)) for index, move in enumerate(found)]


def _believed(gradient: Tensor, square: Tensor, steps: int) -> Tensor:
    """The mean gradient of each block, less what is noise in it (James and Stein): those that gain most are those whose noise says so."""
    length = gradient.square().sum(2)
    noise = (square * gradient.shape[2] - length).clamp_min(0) / (steps - 1)
    return gradient * (1 - noise / length.clamp_min(_TINY)).clamp_min(0)[:, :, None]


def _lower(together: Tensor) -> Tensor:
    """[B, d, d]: lower Cholesky factors of the sums of outer products, which are made to have a mean eigenvalue of 1."""
    d = together.shape[1]
    mean = together.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    shape = torch.where(mean > 0, together / mean.clamp_min(_TINY), 0)
    lower: Tensor = torch.linalg.cholesky(shape * (1 - _DAMPING) + _DAMPING * torch.eye(d))
    return lower


def _by_column(blocks: Tensor, matrices: Tensor) -> Tensor:
    """Blocks [out, B, d], those of each column times its matrix of [B, d, d]."""
    return torch.bmm(blocks.transpose(0, 1), matrices).transpose(0, 1)


def _nearest(points: Tensor, books: Tensor, lower: Tensor) -> Tensor:
    """int64 [out, B]: for points [out, B, d] the nearest of books [G, K, d] times lower [B, d, d], in the book of the column."""
    columns = points.shape[1]
    found = []
    for column in range(columns):
        keys = books[column * len(books) // columns] @ lower[column]
        found.append(nearest_of(points[:, column][None], keys[None])[0])
    return torch.stack(found, 1)
