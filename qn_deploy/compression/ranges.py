"""The range of each activation that loses least in int8, found while its values pass by."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, inf
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qn_deploy.graph.operators import Kind, kind_of
from qn_deploy.memory import as_laid_out
from qn_deploy.program.program import Range

_SAMPLE = 1 << 18  # values of an activation that are looked at, in all batches together; its least and greatest are known exactly
_BINS = 2048
_STEPS = 255
_ABSURD = 1e30  # no activation: the masks of attention are as low as numbers go


class Ranges:
    """Sees the values of a program and knows their ranges.

    Args:
        batches: how many values of each node will be seen; after that many only its range is kept.
    """

    def __init__(self, batches: int) -> None:
        self._batches, self._share = batches, -(-_SAMPLE // batches)
        self._seen: dict[str, _Seen] = {}
        self._found: dict[str, Range] = {}

    def see(self, node: Node, value: Any) -> None:
        """Takes one value in. What is no float tensor has no range, and what an operator only moves has the range of its input."""
        if not isinstance(value, Tensor) or not value.is_floating_point() or kind_of(node) is Kind.SHAPE:
            return
        # One buffer for all batches: many small ones between values that come and go would keep memory from being used again.
        if node.name not in self._seen:
            self._seen[node.name] = _Seen(torch.empty(self._share * self._batches))
        seen = self._seen[node.name]
        seen.take(value, self._share)
        if seen.count == self._batches:
            self._keep(node.name)

    def found(self) -> dict[str, Range]:
        """The ranges by the name of the node."""
        for name in list(self._seen):
            self._keep(name)
        return dict(self._found)

    def _keep(self, name: str) -> None:
        seen = self._seen.pop(name)
        if seen.low <= seen.high:
            self._found[name] = least_loss(seen.sample[: seen.filled], seen.low, seen.high)


@dataclass
class _Seen:
    """What was seen of one node: a sample, and the ends of all its values."""

    sample: Tensor
    filled: int = 0
    low: float = inf
    high: float = -inf
    count: int = 0

    def take(self, value: Tensor, most: int) -> None:
        """Takes one value in, and at most so many of its elements into the sample."""
        self.count += 1
        if not value.numel():
            return
        low, high = (float(end) for end in value.aminmax())
        sample = _sampled(value, most)
        if not -_ABSURD < low <= high < _ABSURD:  # NaN too
            value, sample = value[value.abs() < _ABSURD], sample[sample.abs() < _ABSURD]
            if not value.numel():
                return
            low, high = (float(end) for end in value.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.sample[self.filled : self.filled + len(sample)] = sample
        self.filled += len(sample)


def least_loss(sample: Tensor, low: float, high: float) -> Range:
    """The range around zero that loses the least squared error when it is cut into 255 steps and what is outside is clipped.

    Args:
        sample: float32 [n], values of an activation.
        low: the least of all its values.
        high: the greatest.
    """
    low, high = min(low, 0.0), max(high, 0.0)  # int8 has a step for zero
    sample = sample[sample != 0]  # which loses nothing
    if not len(sample) or low == high:
        return low, high
    counts = torch.histc(sample, _BINS, low, high).double()
    edges = torch.linspace(low, high, _BINS + 1, dtype=torch.float64)
    centers = (edges[1:] + edges[:-1]) / 2
    below = _clipped(counts, centers, edges)
    above = _clipped(counts.flip(0), -centers.flip(0), -edges.flip(0)).flip(0)
    within = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    lows, highs = (edges <= 0).nonzero()[:, 0], (edges >= 0).nonzero()[:, 0]
    lows, highs = lows[:: len(lows) // 256 + 1], highs.flip(0)[:: len(highs) // 256 + 1]
    width = (edges[highs] - edges[lows][:, None]) / _STEPS
    rounding = (within[highs] - within[lows][:, None]) * width.square() / 12
    loss = below[lows][:, None] + above[highs] + rounding
    best = int(torch.where(width > 0, loss, torch.inf).argmin())
    return float(edges[lows[best // len(highs)]]), float(edges[highs[best % len(highs)]])


def _clipped(counts: Tensor, centers: Tensor, edges: Tensor) -> Tensor:
    """[bins + 1]: the squared error of what lies below each edge, if it is clipped there."""
    zero = counts.new_zeros(1)
    number, total, squares = (torch.cat([zero, moment.cumsum(0)]) for moment in (counts, counts * centers, counts * centers.square()))
    return squares - 2 * edges * total + edges.square() * number


def _sampled(value: Tensor, most: int) -> Tensor:
    """At most so many values, at equal distances, one that shares no factor with the sizes: it meets all channels alike."""
    [flat] = as_laid_out(value)
    step = -(-len(flat) // most)
    while gcd(step, len(flat)) > 1:
        step += 1
    return flat[::step]
