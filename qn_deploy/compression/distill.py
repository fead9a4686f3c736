"""What a student learns from a teacher: the distance of their outputs, and one step of fine-tuning that makes it smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.compression.student import clamp_tables, tables
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.sites import weights
from qn_deploy.program.batches import as_batch
from qn_deploy.program.program import Batch, Program

_LEAST_RMS = 1e-3  # what a parameter of zeros counts as, so that it can leave zero (Adafactor's rule)

Loss = Callable[[Any, Any], Tensor]
"""(the student's outputs, the teacher's outputs) -> a scalar."""


def distance(student: object, teacher: object, temperature: float = 1.0) -> Tensor:
    """How far a student's outputs are from the teacher's, summed over the outputs; a scalar.

    [batch, classes] is taken as logits: Kullback-Leibler divergence of the softmax at `temperature`. Anything else: mean squared error
    divided by the teacher's mean square, so that a learning rate does not depend on the unit of the output.
    """
    total = torch.zeros(())
    for ours, theirs in zip(_tensors(student), _tensors(teacher), strict=True):
        if ours.ndim == 2:
            logs = F.log_softmax(ours / temperature, dim=1), F.log_softmax(theirs / temperature, dim=1)
            loss = F.kl_div(*logs, reduction="batchmean", log_target=True) * temperature**2
        else:
            loss = relative(ours, theirs)
        total = total.to(loss.device) + loss
    return total


@dataclass(frozen=True)
class Lesson:
    """How a student is moved towards its teacher.

    Attributes:
        student: a graph in eval mode, or a module; what it returns is compared with a teacher's tensor by tensor.
        optimizer: of the student's parameters, new; the learning rates that it was made with are the highest.
        loss: on their outputs.
        hints: how many of the last outputs are hidden values, matched by mean squared error over the teacher's mean square.
        hint_weight: what each hint counts beside `loss`, which sees the other outputs.
        clip: the largest norm of the gradient of all parameters together; infinity for no bound.
        bfloat16: the student's matrix products in bfloat16 (torch.autocast).
    """

    student: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss = distance
    hints: int = 0
    hint_weight: float = 1.0
    clip: float = float("inf")
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def step(self, batch: Batch, goal: object, rate: float, where: str) -> float:
        """One step of the optimizer on a batch, towards what the teacher gives, at `rate` times the highest learning rates.

        Returns:
            The loss before it.

        Raises:
            CompressionError: the loss is not finite; the message says `where`.
        """
        loss = self._loss(batch, goal)
        value = loss.item()
        groups = self.optimizer.param_groups
        if not isfinite(value):
            highest = max(group["initial_lr"] for group in groups)
            raise CompressionError(f"the loss became {value} while fine-tuning {where}; try a learning rate below {highest:g}")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if isfinite(self.clip):
            torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.clip)
        for group in groups:
            group["lr"] = rate * group["initial_lr"]
        self.optimizer.step()
        clamp_tables(self.student)
        return value

    @torch.no_grad()
    def value(self, batch: Batch, goal: object) -> float:
        """The loss as it is now."""
        return self._loss(batch, goal).item()

    def _loss(self, batch: Batch, goal: object) -> Tensor:
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=self.bfloat16):
            answer = _tensors(self.student(*batch))
        goals = _tensors(goal)
        visible = len(answer) - self.hints
        loss = self.loss(tuple(answer[:visible]), tuple(goals[:visible]))
        for ours, theirs in zip(answer[visible:], goals[visible:], strict=True):
            loss = loss + self.hint_weight * relative(ours, theirs)
        return loss


@torch.no_grad()
def answer_of(teacher: nn.Module, batch: Batch, bfloat16: bool = False) -> object:
    """What a teacher gives; with matrix products in bfloat16 if asked for."""
    with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=bfloat16):
        return teacher(*batch)


def layers_like(program: Program, globs: tuple[str, ...]) -> tuple[str, ...]:
    """Nodes of the layers that a glob matches, in the graph's order; a layer is named as its weight is, without ".weight".

    Raises:
        InputError: a glob matches none.
    """
    nodes = {weight.name.rpartition(".")[0]: weight.readers[0].name for weight in weights(program.exported)}
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in nodes):
            raise InputError(f"the hint {glob!r} matches no layer; the model has {', '.join(nodes) or 'none'}")
    return tuple(node for name, node in nodes.items() if any(fnmatchcase(name, glob) for glob in globs))


def learning_rates(student: nn.Module, lr: float, scale_lr: float, rest_lr: float) -> list[dict[str, Any]]:
    """One group of the optimizer for each parameter that learns, since each has a unit of its own: centroids that of int8 steps.

    Args:
        student: whose parameters learn.
        lr: of centroids; all are relative to the root mean square of the parameter.
        scale_lr: of scales.
        rest_lr: of all else.
    """
    relative_lr: dict[int, float] = {}
    for _, _, (centroids, scale, *residual) in tables(student):
        relative_lr |= {id(book): lr for book in (centroids, *residual)} | {id(scale): scale_lr}
    groups = []
    for parameter in student.parameters():
        if parameter.requires_grad:
            rms = float(parameter.detach().square().mean().sqrt())
            rate = relative_lr[id(parameter)] * rms if id(parameter) in relative_lr else rest_lr * max(rms, _LEAST_RMS)
            groups.append({"params": [parameter], "lr": rate})
    return groups


def endless(program: Program, batches: Iterable[Any]) -> Iterator[Batch]:
    """The batches, again and again, in the order of the program's inputs.

    Raises:
        InputError: there are none, one does not fit, or they can be gone through only once.
    """
    empty = False
    while not empty:
        empty = True
        for index, batch in enumerate(batches):
            empty = False
            yield as_batch(program, batch, f"batch {index}")
    raise InputError("there are no batches to fine-tune with, or no more: give a list or a DataLoader, not a generator")


def relative(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean squared error over the teacher's mean square."""
    return F.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(1e-12)


def _tensors(outputs: object) -> list[Tensor]:
    """The floating-point tensors among outputs; those of half precision in float32, to take sums and logarithms of."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [leaf.to(torch.promote_types(leaf.dtype, torch.float32)) for leaf in leaves]
