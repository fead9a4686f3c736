"""One form for each weight, so that the loss is least within a number of bytes: the multiple-choice knapsack problem.

Solved exactly over buckets of bytes, into which sizes are rounded up, so that a choice is never larger than it says. A small budget has
small buckets. What the rounding may have cost is told by a lower bound that no choice can beat (the Lagrangian dual).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BUCKETS = 1 << 13
_ROUNDS = 60  # of bisection, to the last bit that counts


@dataclass(frozen=True)
class Choice:
    """One form for each weight.

    Attributes:
        forms: the index of the form of each weight.
        size: bytes of all.
        loss: the sum of what they lose.
        gap: share of the loss that a better choice could save at most; 0 is proven to be the best.
    """

    forms: tuple[int, ...]
    size: int
    loss: float
    gap: float


class Knapsack:
    """The best choices of all sizes.

    Args:
        sizes: for each weight the bytes of each of its forms.
        losses: what each of these forms loses, 0 or more.
    """

    def __init__(self, sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]]) -> None:
        self._sizes = [np.asarray(each, np.int64) for each in sizes]
        self._losses = [np.asarray(each, np.float64) for each in losses]
        self.smallest = int(sum(each.min() for each in self._sizes))
        self.largest = int(sum(each.max() for each in self._sizes))

    def best(self, budget: int) -> Choice | None:
        """The choice that loses least within so many bytes; None if none is so small."""
        if budget < self.smallest:
            return None
        room = min(budget, self.largest) - self.smallest
        bucket = max(1, -(-room // BUCKETS))
        left, forms = room // bucket, []
        for taken, extra in reversed(self._solved(bucket, left)):
            form = int(taken[left])
            forms.append(form)
            left -= int(extra[form])
        return self.choice(tuple(reversed(forms)), budget)

    def choice(self, forms: tuple[int, ...], budget: int) -> Choice:
        """What these forms take and lose, and how far they may be from the best of a budget."""
        picked = [(int(sizes[form]), float(losses[form])) for form, sizes, losses in zip(forms, self._sizes, self._losses, strict=True)]
        loss = sum(loss for _, loss in picked)
        return Choice(forms, sum(size for size, _ in picked), loss, self._gap(loss, budget))

    def frontier(self, points: int) -> list[Choice]:
        """Choices from the smallest to the largest size, each losing less than the one before, at most so many."""
        at = np.unique(np.geomspace(max(self.smallest, 1), max(self.largest, 1), points).astype(np.int64))
        found: list[Choice] = []
        for budget in (self.smallest, *at[1:-1], self.largest):
            choice = self.best(int(budget))
            if choice is not None and (not found or choice.loss < found[-1].loss):
                found.append(choice)
        return found

    def bound(self, budget: int) -> float:
        """What every choice within so many bytes loses at least."""
        low, high, best = 0.0, 1e-300, 0.0
        while self._relaxed(high)[1] > budget and high < 1e300:
            high *= 16
        for _ in range(_ROUNDS):
            price = (low + high) / 2
            loss, size = self._relaxed(price)
            best = max(best, loss + price * (size - budget))
            low, high = (price, high) if size > budget else (low, price)
        return best

    def _relaxed(self, price: float) -> tuple[float, int]:
        """Loss and size where each byte costs a price and there is no budget."""
        loss, size = 0.0, 0
        for sizes, losses in zip(self._sizes, self._losses, strict=True):
            form = int((losses + price * sizes).argmin())
            loss, size = loss + float(losses[form]), size + int(sizes[form])
        return loss, size

    def _gap(self, loss: float, budget: int) -> float:
        return max(0.0, 1 - self.bound(budget) / loss) if loss > 0 else 0.0

    def _solved(self, bucket: int, room: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each weight the form that it takes by the buckets left for it and those before it, and the buckets of each form."""
        best, found = np.zeros(room + 1), []
        for sizes, losses in zip(self._sizes, self._losses, strict=True):
            extras = -((sizes.min() - sizes) // bucket)  # beyond the smallest form, rounded up
            options = np.full((len(extras), room + 1), np.inf)
            for form, (extra, loss) in enumerate(zip(extras, losses, strict=True)):
                if extra <= room:
                    options[form, extra:] = best[: room + 1 - extra] + loss
            found.append((options.argmin(0), extras))
            best = options.min(0)
        return found
