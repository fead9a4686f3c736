"""What a student learns from a teacher: the distance of their outputs, and one step of fine-tuning that makes it smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.compression.layers import clamp_tables
from qn_deploy.errors import CompressionError, InputError

Batch = tuple[Tensor, ...]
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
            loss = _relative(ours, theirs)
        total = total.to(loss.device) + loss
    return total


@dataclass(frozen=True)
class Lesson:
    """How a student is moved towards its teacher.

    Attributes:
        student, teacher: in eval mode.
        optimizer: of the student's parameters, new; the learning rates that it was made with are the highest.
        loss: on their outputs.
        hints: names of modules whose outputs are matched too, by mean squared error over the teacher's mean square.
        hint_weight: what each hint counts beside `loss`.
        clip: the largest norm of the gradient of all parameters together; infinity for no bound.
        bfloat16: matrix products in bfloat16 (torch.autocast), of teacher and student.
    """

    student: nn.Module
    teacher: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss = distance
    hints: tuple[str, ...] = ()
    hint_weight: float = 1.0
    clip: float = float("inf")
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]

    def step(self, batch: Batch, rate: float, where: str) -> float:
        """One step of the optimizer on a batch, at `rate` times the highest learning rates; the loss before it.

        Raises:
            CompressionError: the loss is not finite; the message says `where`.
        """
        loss = self._loss(batch)
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

    def _loss(self, batch: Batch) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(torch.autocast(batch[0].device.type, torch.bfloat16, enabled=self.bfloat16))
            taught, learnt = (_recorded(stack, model, self.hints) for model in (self.teacher, self.student))
            with torch.no_grad():
                goal = self.teacher(*batch)
            answer = self.student(*batch)
        loss = self.loss(answer, goal)
        for name in self.hints:
            pairs = zip(_tensors(learnt[name]), _tensors(taught[name]), strict=True)
            loss = loss + self.hint_weight * sum(_relative(ours, theirs) for ours, theirs in pairs)
        return loss


def modules_like(model: nn.Module, globs: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the modules that a glob matches, in the model's order.

    Raises:
        InputError: a glob matches none.
    """
    names = [name for name, _ in model.named_modules() if name and "parametrizations" not in name.split(".")]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise InputError(f"the hint {glob!r} matches no module; the model has {', '.join(names) or 'none'}")
    return tuple(name for name in names if any(fnmatchcase(name, glob) for glob in globs))


def as_batch(batch: object) -> Batch:
    """A batch as a tuple of inputs.

    Raises:
        InputError: it is no tuple or list.
    """
    if not isinstance(batch, tuple | list):
        raise InputError(f"a batch is a {type(batch).__name__}; give tuples of input tensors, (x,) for a model of one input")
    return tuple(batch)


def endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, again and again.

    Raises:
        InputError: they are empty, hold no tuples, or can be gone through only once.
    """
    empty = False
    while not empty:
        empty = True
        for batch in batches:
            empty = False
            yield as_batch(batch)
    raise InputError("there are no batches to fine-tune with, or no more: give a list or a DataLoader, not a generator")


def trainable(model: nn.Module) -> nn.Module:
    """The model, with gradients wanted of all its parameters, those too that its user had frozen."""
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def _recorded(stack: ExitStack, model: nn.Module, names: tuple[str, ...]) -> dict[str, object]:
    """The outputs of modules by name, filled in when the model runs; of one that is called twice, the last."""
    outputs: dict[str, object] = {}
    for name in names:

        def record(module: nn.Module, args: object, output: object, name: str = name) -> None:
            outputs[name] = output

        handle = model.get_submodule(name).register_forward_hook(record)
        stack.callback(handle.remove)
    return outputs


def _relative(ours: Tensor, theirs: Tensor) -> Tensor:
    return F.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(1e-12)


def _tensors(outputs: object) -> list[Tensor]:
    """The floating-point tensors among a module's outputs; those of half precision in float32, to take sums and logarithms of."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [leaf.to(torch.promote_types(leaf.dtype, torch.float32)) for leaf in leaves]
