"""Random weights, and inputs that go together as those of a network do."""

from __future__ import annotations

import torch
from torch import Tensor

from qn_deploy.compression.curvature import Curvature, Feedback
from qn_deploy.compression.moments import Moments

PLAIN = Feedback(correction=0.0)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(n: int, groups: int = 1, seed: int = 0) -> Tensor:
    """[groups, 4n, n] inputs that go together, as those of a network do."""
    return random(groups, 4 * n, n, seed=seed) @ (random(groups, n, n, seed=seed + 1) / 2 + 1)


def seen(x: Tensor, y: Tensor | None = None, config: Feedback = PLAIN) -> Curvature:
    """What a layer with inputs x, in the float model y, knows of them; both halves of the sample agree on all of it."""
    return Curvature.of(Moments(x.mT @ x, ((x if y is None else y) - x).mT @ x, agreed=torch.ones(len(x), 2)), config)
