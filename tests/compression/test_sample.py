from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qn_deploy.compression.curvature import _USUAL as USUAL
from qn_deploy.compression.curvature import Curvature, Feedback
from qn_deploy.compression.moments import Moments, measured
from qn_deploy.compression.sample import agreement, damped
from tests.compression.samples import random
from tests.compression.test_moments import LINEAR


def half(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """H and S of inputs [P, n]."""
    return (x.mT @ x)[None], ((y - x).mT @ x)[None]


def agreed(halves: list[tuple[Tensor, Tensor]], damping: float = 0.1) -> list[float]:
    (gram, shift), (other, other_shift) = halves
    return agreement((gram, other), (shift, other_shift), torch.tensor([[damping]]))[0].tolist()


@pytest.mark.parametrize("n", [3, 200])
def test_it_is_what_the_move_of_one_half_does_to_the_other(n: int) -> None:
    truth = torch.eye(n) + random(n, n, seed=9) / n**0.5
    x = [random(4 * n, n, seed=seed) for seed in range(2)]
    halves = [half(each, each @ truth + random(*each.shape, seed=7)) for each in x]
    gain, cost = agreed(halves)
    expected = torch.zeros(2)
    for (gram, shift), (other, other_shift) in (halves, halves[::-1]):
        move = shift[0] @ damped(gram, torch.tensor([[0.1]]))[0].inverse()
        expected += torch.stack([(other_shift[0] * move).sum(), (move @ other[0] * move).sum()])
    if n == 3:
        assert [gain, cost] == pytest.approx(expected.tolist(), rel=1e-4)
    else:
        assert gain / cost == pytest.approx(float(expected[0] / expected[1]), rel=0.1)  # by random rows


def moments(count: int, noise: float, n: int = 24) -> Moments:
    """Of inputs that compression has changed: by the same matrix all over, and by chance."""
    changed = torch.eye(n) + random(n, n, seed=1) / 10
    batches = []
    for seed in range(4):
        x = random(count, n, seed=10 + seed) @ torch.linspace(0.1, 2, n).diag()
        batches.append((x, x @ changed + noise * random(count, n, seed=20 + seed)))
    return measured(LINEAR, torch.empty(5, n), batches, 4, bias=True, damping=0.2)


def test_a_weight_moves_as_far_as_other_inputs_bear_out() -> None:
    cases = (moments(500, 0.1), moments(20, 1.0), moments(20, 10.0))
    shares = [float(each.agreed[0, 0] / each.agreed[0, 1]) for each in cases if each.agreed is not None]
    assert shares[0] > 0.95 and 0.05 < shares[1] < 0.7 and shares[2] < 0.2
    for each, share in zip(cases, shares, strict=True):
        found, usual = (Curvature.of(known, Feedback()).move for known in (each, replace(each, agreed=None)))
        torch.testing.assert_close(found * USUAL, usual * min(max(share, 0), 1))


def test_one_batch_tells_nothing_and_neither_do_inputs_that_nothing_has_changed() -> None:
    x = random(9, 4, seed=0)
    assert measured(LINEAR, torch.empty(5, 4), [(x, x + 1)], 1, damping=0.2).agreed is None
    assert measured(LINEAR, torch.empty(5, 4), [(x, x), (x, x)], 2, damping=0.2).agreed is None
