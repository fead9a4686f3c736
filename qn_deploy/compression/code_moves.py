"""Codes that learn: while a program is tuned, now and then the few blocks of tables that gain most by it take another centroid.

Codes are discrete: a step that is small for each block changes none of them. So a few blocks move at a time, each by a whole step, as in
PV-Tuning (Malinovskii et al. 2024, arXiv:2405.14852, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.compression.codes import nearest_of
from qn_deploy.compression.parametrizations import TableWeight
from qn_deploy.compression.student import tables
from qn_deploy.errors import InputError
from qn_deploy.program.program import Batch
from qn_deploy.weights.compressed import to_int8

_LEAST = 0.01  # of a table's mean square of gradients, added to each block's
_DAMPING = 0.1  # of the mean eigenvalue of a curvature, added to all
_TINY = torch.finfo(torch.float32).tiny


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


Lesson = tuple[Batch, object]  # a batch, and what the teacher gives of it


class Move(NamedTuple):
    """What a table could do: the centroid int64 [out, B] that each block would take, and float32 [out, B] what the loss would fall by."""

    codes: Tensor
    centroids: Tensor
    gain: Tensor


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
        self._watched = [_Watched(name, table, parameters) for name, table, parameters in tables(student)]
        self._steps, self._reach = 0, config.reach
        self._judges: list[Lesson] = []

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

    def restore(self, state: dict[str, Tensor], last: Sequence[Lesson]) -> None:
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


class _Watched:
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
