"""What the bits of a table cost: codes and centroids are chosen for loss and bytes together, where a file entropy-codes them.

The Lagrangian of entropy-constrained vector quantization (Chou, Lookabaugh and Gray 1989), for codes; a coarser grid for centroids, whose
values take fewer bits then.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from qn_deploy.weights.compressed import INT8_MAX, book_offsets

GRIDS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)  # steps of a grid to choose from, in steps of int8's whole reach


@dataclass(frozen=True)
class Price:
    """What codes cost beside what is lost.

    Attributes:
        worth: float32 [groups, out, 1], what a bit counts for the codes of each row, in the unit of its loss.
        bits: float32 [G, K], what each code takes.
    """

    worth: Tensor
    bits: Tensor

    def of_column(self, column: int, columns: int) -> tuple[Tensor, Tensor]:
        """`worth`, and bits [K] of the codes in one of so many block columns."""
        return self.worth, self.bits[column * len(self.bits) // columns]


def slope(loss: float, codes: int, d: int) -> float:
    """The loss that a bit is worth: what one more bit for a code would save, where distortion halves with each d / 2 bits.

    Args:
        loss: of the whole weight.
        codes: how many it has.
        d: weights of a block.
    """
    return loss / codes * 2 * log(2) / d


def counted(codes: Tensor, books: int, size: int) -> Tensor:
    """float32 [G, K]: how many of the codes [out, B] name each centroid."""
    rows = codes + book_offsets(codes.shape[1], books, size)
    return torch.bincount(rows.flatten(), minlength=books * size).reshape(books, size).float()


def bits_of(counts: Tensor) -> Tensor:
    """float32 [G, K]: bits of each code by how often it is used; one that no block uses has its price, too (Krichevsky-Trofimov)."""
    seen = counts + 0.5
    return -(seen / seen.sum(1, keepdim=True)).log2()


def entropy(centroids: Tensor) -> float:
    """Bits of all values of centroids, whole numbers in int8's reach, by how often each value is there."""
    counts = torch.bincount((centroids.flatten() + INT8_MAX).long()).double()
    return float(-torch.xlogy(counts, counts / counts.sum()).sum() / log(2))
