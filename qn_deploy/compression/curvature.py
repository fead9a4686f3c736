"""What the inputs of a layer say about its weights: by how much an error counts, and how weights go together.

A layer with inputs x loses E|(W - Q) x|^2 = tr (W - Q) H (W - Q)^T with H = E[x x^T]. Where a bias is added, it makes up for the mean of
what is lost, so H is then the covariance. H is known from a sample only: as far as two halves of the sample disagree, it is drawn towards
a multiple of the identity, by which all weights count alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qn_deploy.compression.moments import Moments
from qn_deploy.compression.sample import damped, shrinkage
from qn_deploy.errors import CompressionError, InputError

_USUAL = 0.8  # of the way, where there is one batch only, and nothing tells how far is right
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Feedback:
    """How weights are compressed with inputs.

    Attributes:
        damping: added to the diagonal of H, as a share of its mean; more is added where the batches disagree on H.
        correction: how far a weight first moves to where its layer, after compressed layers, best gives what the float model's gives;
            0 is not at all, 1 as far as one half of the batches says that it helps on the other half.
        correction_damping: as `damping`, for this move.
        rounds: how often codes are chosen and centroids refitted.

    Raises:
        InputError: numbers out of these ranges.
    """

    damping: float = 0.01
    correction: float = 1.0
    correction_damping: float = 0.2
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
    def of(cls, moments: Moments, config: Feedback) -> Curvature:
        """With student inputs x and the float model's y, the rows V that make E|V x - W y|^2 least are W + W E[(y - x) x^T] H^-1.

        Raises:
            CompressionError: the moments are not finite.
        """
        assert moments.gram is not None and moments.shift is not None
        if not torch.isfinite(moments.gram).all() or not torch.isfinite(moments.shift).all():
            raise CompressionError("its inputs hold NaN or infinity; look for it in the batches")
        # A matrix of a wide layer is large, and twice as large in float64: few of them live at once.
        noise = torch.zeros(len(moments.gram)) if moments.noise is None else moments.noise
        least = shrinkage(moments.gram, noise)
        if config.correction and moments.shift.any():
            lower = _lower(damped(moments.gram, least.clamp_min(config.correction_damping))).float()
            move = torch.cholesky_solve(moments.shift.mT, lower).mT.mul_(config.correction * _believed(moments))
            del lower
        else:
            move = torch.zeros_like(moments.shift)
        gram = damped(moments.gram, least.clamp_min(config.damping))
        return cls(gram, _factor(gram), move, moments.mean, moments.their_mean)

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


def _believed(moments: Moments) -> Tensor:
    """[groups, 1, 1]: how far of the way to move."""
    if moments.agreed is None:
        return torch.tensor(_USUAL)
    gain, cost = moments.agreed[:, :, None, None].unbind(1)
    return torch.where(cost > _TINY, gain / cost.clamp_min(_TINY), 0.0).clamp(0, 1)


def _lower(gram: Tensor) -> Tensor:
    """The Cholesky factor in float64, since float32 can fail where inputs go together closely; it takes the place of the copy."""
    lower = gram.double().mT  # column after column, as LAPACK takes it: it would make a copy
    torch.linalg.cholesky(lower, out=lower)
    return lower


def _factor(gram: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse."""
    # Flipped, gram is L L^T; so it is R R^T with the upper R, L flipped, and its inverse is U^T U with U = R^-1: no inverse is needed.
    lower = _lower(gram.flip(1, 2))
    inverse = torch.zeros_like(lower)
    inverse.diagonal(dim1=1, dim2=2).fill_(1)
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    return inverse.float().flip(1, 2)
