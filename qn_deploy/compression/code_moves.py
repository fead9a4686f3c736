"""Codes that learn: while a program is tuned, now and then the few blocks of tables that gain most by it take another centroid.

Codes are discrete: a step that is small for each block changes none of them. So a few blocks move at a time, each by a whole step, as in
PV-Tuning (Malinovskii et al. 2024, arXiv:2405.14852, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qn_deploy.compression.student import tables
from qn_deploy.compression.table_gradients import Move, TableGradients
from qn_deploy.errors import InputError
from qn_deploy.program.program import Batch


@dataclass(frozen=True)
class CodeConfig:
    """How the codes of tables learn.

    Attributes:
        every: steps of Adam between two moves.
        judges: the last of these steps, whose batches tell whether a move is a good one; the gradients of the others find it.
        share: of all codes, the most that change in one move.
        reach: how far a usual block whose gradients all agree would go if it could go anywhere, over the root mean square of its weight, to
            begin with; it shrinks where the loss does not fall as foreseen, and grows where it does.
        tries: of moves with ever shorter reach, until one lowers the loss.
        until: share of the run after which codes stay, and what is around them settles.
    """

    every: int = 25
    judges: int = 4
    share: float = 0.03
    reach: float = 0.05
    tries: int = 2
    until: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.judges <= self.every - 2 or not 0 < self.share <= 1:
            raise InputError(
                f"every {self.every}, judges {self.judges}, share {self.share}; expected at least 3, 1 to every - 2, above 0 to 1"
            )
        if self.reach <= 0 or self.tries < 1 or not 0 <= self.until <= 1:
            raise InputError(f"reach {self.reach}, tries {self.tries}, until {self.until}; expected above 0, 1 or more, 0 to 1")


Judge = tuple[Batch, object]  # a batch, and what the teacher gives of it


class CodeMoves:
    """Sums up the gradients of a student's tables, and moves their codes.

    It holds one float32 copy of the weights, and one number more for each block.

    Args:
        student: of a program with tables; with int8 in the loop.
        config: how often, how many and how far.
        lost: the student's loss now, of a batch and what the teacher gives.
    """

    def __init__(self, student: nn.Module, config: CodeConfig, lost: Callable[[Batch, object], float]) -> None:
        self.config, self._lost = config, lost
        self._watched = [TableGradients(name, table, parameters) for name, table, parameters in tables(student)]
        self._steps, self._reach = 0, config.reach
        self._judges: list[Judge] = []

    def before(self, share: float, batch: Batch, goal: object) -> int:
        """Call it before each step of the optimizer; how many codes changed.

        Args:
            share: of the run that is done.
            batch: that the step will be on.
            goal: what the teacher gives of it.
        """
        count = 0
        if self._steps == self.config.every:
            count = self._moved() if share <= self.config.until else 0
            self._steps, self._judges = 0, []
            for each in self._watched:
                each.forget()
        self._steps += 1
        listens = self._steps <= self._heard
        for each in self._watched:
            each.listens = listens
        if not listens:
            self._judges.append((batch, goal))
        return count

    @property
    def _heard(self) -> int:
        """Steps whose gradients are summed up."""
        return self.config.every - self.config.judges

    def _moved(self) -> int:
        """Levenberg's and Marquardt's rule: the model's curvature grows or shrinks as the loss itself tells how far to believe it."""
        units = [each.unit(self._heard) for each in self._watched]
        unit = sum(units) / max(len(units), 1)
        if not unit:
            return 0

        def lost() -> float:
            return sum(self._lost(*each) for each in self._judges) / len(self._judges)

        start = lost()
        for _ in range(self.config.tries):
            moves = [move for each in self._watched for move in each.moves(self._heard, 1 / (self._reach * unit))]
            before = [move.codes.clone() for move in moves]
            count, foreseen = take_best(moves, self.config.share)
            fell = start - lost() if count else 0.0
            if fell >= 0.5 * foreseen:
                self._reach *= 2
            elif fell < 0.25 * foreseen:
                self._reach /= 2
            if fell > 0 or not count:
                return count
            for move, codes in zip(moves, before, strict=True):
                move.codes.copy_(codes)
        return 0

    def state(self) -> dict[str, Tensor]:
        """What a run that goes on later needs, by name; the codes themselves are the student's."""
        sums = {f"{each.name}/{kind}": value for each in self._watched for kind, value in each.sums.items()}
        return {"place": torch.tensor([self._steps, self._reach], dtype=torch.float64), **sums}

    def restore(self, state: dict[str, Tensor], last: Sequence[Judge]) -> None:
        """Puts back what `state` gave.

        Args:
            state: as it was given.
            last: the batches of the last steps, at least as many as there are judges, and what the teacher gives of them.
        """
        steps, self._reach = state["place"].tolist()
        self._steps = int(steps)
        waiting = max(0, self._steps - self._heard)
        self._judges = [*last[len(last) - waiting :]]
        for each in self._watched:
            for kind, value in each.sums.items():
                value.copy_(state[f"{each.name}/{kind}"])


def take_best(moves: Sequence[Move], share: float) -> tuple[int, float]:
    """Lets those blocks move that gain most, at most a share of all, none that gains nothing; how many, and what they gain."""
    if not moves:
        return 0, 0.0
    gains = torch.cat([move.gain.flatten() for move in moves])
    best = gains.topk(int(share * len(gains))).indices
    taken = torch.zeros(len(gains), dtype=torch.bool).index_fill_(0, best, True) & (gains > 0)
    begin = 0
    for move in moves:
        chosen = taken[begin : begin + move.gain.numel()].reshape(move.gain.shape)
        move.codes.copy_(torch.where(chosen, move.centroids, move.codes.long()))
        begin += chosen.numel()
    return int(taken.sum()), float(gains[taken].sum())
