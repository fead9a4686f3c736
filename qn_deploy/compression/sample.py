"""A sample of the inputs of a layer, in two halves: what is believed of it is what one half tells of the other."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_NOISE = 0.95  # of what tells H from a multiple of the identity
_ROUNDING = 1e-5  # of the mean square about 0, added to that about the mean: activations in float32 tell no more
_TINY = torch.finfo(torch.float32).tiny
_PROBES = 128  # rows that stand for all rows that a weight could have
_LEAST_DAMPING = 0.05  # so that float32 is enough for a factor


class Half:
    """Sums over one half of a sample; each input, and the one that stands for the bias beside it, was scaled by the same factor.

    Attributes:
        origin: float32 [groups, 1, n], what the sums below are about: 0, or, if the mean is to be taken out, that of the first batch.
            Inputs next to their mean would leave nothing of a difference of sums about 0 but its rounding.
        gram: float32 [groups, n, n], of x^T x.
        x: float32 [groups, 1, n], of 1 x.
        shift: float32 [groups, n, n], of (y - x)^T x, about 0.
        change: float32 [groups, 1, n], of 1 (y - x), about 0.
        ones: float32 [groups, 1, 1], of 1 1.
        count: how many inputs.
    """

    def __init__(self, groups: int, n: int, centred: bool) -> None:
        self.gram, self.shift = (torch.zeros(groups, n, n) for _ in range(2))
        self.ones = torch.zeros(groups, 1, 1)
        self.origin, self.x, self.change = (torch.zeros(groups, 1, n) for _ in range(3))
        self.count, self._centred = 0, centred

    def add(self, x: Tensor, factor: Tensor, change: Tensor | None = None) -> None:
        """Takes inputs in, whose memory is used up: x and y - x, if they differ, [groups, P, n], both scaled by factor [groups, P, 1]."""
        if change is not None:
            self.change.baddbmm_(factor.mT, change)
            self.shift.baddbmm_(change.mT, x)
        if self._centred:
            if not self.ones.any():
                self.origin = factor.mT @ x / (factor.mT @ factor).clamp_min(_TINY)
            x.addcmul_(factor, self.origin, value=-1)
        self.gram.baddbmm_(x.mT, x)
        self.x.baddbmm_(factor.mT, x)
        self.ones.baddbmm_(factor.mT, factor)
        self.count += x.shape[1]

    def centre(self) -> tuple[Tensor, Tensor]:
        """Takes the means [groups, 1, n] of x and y - x out of `gram` and `shift`, and gives them."""
        ones = self.ones.clamp_min(_TINY)
        mean = self.x / ones
        self.gram.baddbmm_(self.x.mT, mean, alpha=-1)
        mean = self.origin + mean
        diagonal = self.gram.diagonal(dim1=1, dim2=2)
        diagonal += _ROUNDING * (diagonal + self.ones[:, 0] * mean[:, 0].square()).mean(1, keepdim=True)
        self.shift.baddbmm_(self.change.mT, mean, alpha=-1)
        return mean, self.change / ones

    def apart(self, other: Half) -> Tensor:
        """[groups]: how far the sum of both grams is off, squared, if both are samples of the same inputs."""
        if not self.count or not other.count:
            return torch.zeros(len(self.gram))  # a single batch
        share = self.count / (self.count + other.count)
        return share * (1 - share) * (self.gram / share - other.gram / (1 - share)).square_().sum((1, 2))


def shrinkage(gram: Tensor, noise: Tensor) -> Tensor:
    """[groups, 1]: the damping with which a sample's H is nearest to that of all inputs (Ledoit and Wolf 2004).

    Args:
        gram: float32 [groups, n, n], H.
        noise: float32 [groups], its squared error.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    apart = gram.square().sum((1, 2)) - diagonal.mean(1).square() * diagonal.shape[1]  # from a multiple of the identity
    share = (noise / apart.clamp_min(_TINY)).clamp(0, _MOST_NOISE)
    return (share / (1 - share))[:, None]


def damped(gram: Tensor, damping: Tensor) -> Tensor:
    """A copy with a share [groups, 1] of its mean diagonal added to the diagonal."""
    copy = gram.clone()
    diagonal = copy.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True)
    diagonal += damping * torch.where(mean > _TINY, mean, 1.0)  # inputs next to zero say nothing: all weights count alike
    return copy


def agreement(grams: tuple[Tensor, Tensor], shifts: tuple[Tensor, Tensor], damping: Tensor) -> Tensor:
    """float32 [groups, 2]: what the move that one half asks for does to the other half, and the reverse, added up.

    Of a move M = S H^-1 by the one half's S and H, with S' and H' of the other, c M makes the other's loss less by 2 c p - c^2 q, so
    c = p / q is best there. Rows of random signs tell the traces p = tr S' M^T and q = tr M H' M^T (Hutchinson 1989).

    Args:
        grams: float32 [groups, n, n], H of each half.
        shifts: float32 [groups, n, n], S of each half.
        damping: float32 [groups, 1], of H.

    Returns:
        p and q.
    """
    groups, n, _ = grams[0].shape
    signs = torch.randint(0, 2, (_PROBES, n), generator=torch.Generator().manual_seed(0)).float() * 2 - 1
    rows = (torch.eye(n) if n <= _PROBES else signs).expand(groups, -1, -1)
    found = torch.zeros(groups, 2)
    for one, other in ((0, 1), (1, 0)):
        lower = torch.linalg.cholesky(damped(grams[one], damping.clamp_min(_LEAST_DAMPING)))
        moved = torch.cholesky_solve((rows @ shifts[one]).mT, lower).mT
        found[:, 0] += ((rows @ shifts[other]) * moved).sum((1, 2))
        found[:, 1] += (moved @ grams[other] * moved).sum((1, 2))
    return found
