"""iPQ: groups of layers are compressed one after the other, and what is left learns to make up for each (paper section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.compress.apply import Compressed, Target, attach, reference_and_student, targets
from qn_deploy.compress.layers import clamp_tables, round_centroids
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.recipe import Recipe

Progress = Callable[[int, tuple[str, ...], float], None]


@dataclass(frozen=True)
class IPQ:
    """How iPQ proceeds.

    Attributes:
        groups: globs over parameter names; the weights that the first matches are compressed first, and so on, weights that none
            matches last. Empty: the model's order, cut into `stages` groups of about equal bytes.
        stages: how many groups, if `groups` is empty.
        steps: of fine-tuning after each group.
        final_steps: of fine-tuning at the end, with int8 centroids in the loop.
        lr: learning rate at the start of each group; it falls to 0 along a cosine.
        momentum: of SGD.
        temperature: of the teacher's and the student's logits.
        seed: of the k-means.
    """

    groups: tuple[str, ...] = ()
    stages: int = 3
    steps: int = 100
    final_steps: int = 100
    lr: float = 0.01
    momentum: float = 0.9
    temperature: float = 1.0
    seed: int = 0


def ipq(
    model: nn.Module,
    recipe: Recipe,
    batches: Iterable[tuple[Tensor, ...]],
    config: IPQ | None = None,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Compresses a trained model by iterative product quantization with a teacher (paper section 3.2); needs no labels.

    The student stays in eval mode all along: BatchNorm is folded, dropout is off.

    Args:
        model: float32; it is not changed.
        recipe: which weight is compressed how.
        batches: tuples of input tensors; gone through again and again, so give a list or a DataLoader.
        config: groups, steps and learning rate.
        teacher: whose outputs the student learns; the float model itself if None.
        progress: called after each group with its index, its parameter names and the last loss; the last call is the int8 stage.

    Raises:
        CompressionError: a weight can't be compressed, or the loss is no longer finite; the message names the weight or the group.
        InputError: the batches are empty, hold no tuples, or can be gone through only once.
    """
    config = config or IPQ()
    stream = _endless(batches)
    reference, student = reference_and_student(model, next(stream))
    guide = reference if teacher is None else copy.deepcopy(teacher).eval()
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    found, left = targets(student, recipe)
    groups = _by_glob(found, config.groups) if config.groups else _by_bytes(found, config.stages)

    for index, group in enumerate(groups):
        left.update({target.name: reason for target in group if (reason := attach(target, config.seed, int8_in_loop=False))})
        names = tuple(target.name for target in group)
        loss = _fine_tune(student, guide, stream, config.steps, config, f"group {index} ({', '.join(names)})")
        if progress:
            progress(index, names, loss)
    round_centroids(student)
    loss = _fine_tune(student, guide, stream, config.final_steps, config, "the int8 stage")
    if progress:
        progress(len(groups), tuple(target.name for target in found), loss)
    return Compressed(student, recipe, reference, left)


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
            loss = F.mse_loss(ours, theirs) / theirs.square().mean().clamp_min(1e-12)
        total = total.to(loss.device) + loss
    return total


def _fine_tune(student: nn.Module, teacher: nn.Module, stream: Iterator[tuple[Tensor, ...]], steps: int, config: IPQ, where: str) -> float:
    """All parameters of the student against the teacher's outputs; the last loss, or NaN for no step."""
    optimizer = torch.optim.SGD(student.parameters(), lr=config.lr, momentum=config.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(steps, 1))
    value = float("nan")
    for _, batch in zip(range(steps), stream, strict=False):
        with torch.no_grad():
            goal = teacher(*batch)
        loss = distance(student(*batch), goal, config.temperature)
        value = loss.item()
        if not isfinite(value):
            raise CompressionError(f"the loss became {value} while fine-tuning after {where}; try a learning rate below {config.lr}")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        clamp_tables(student)
    return value


def _by_bytes(found: list[Target], stages: int) -> list[list[Target]]:
    """Consecutive groups of about equal bytes; at most `stages`, none empty."""
    groups: list[list[Target]] = [[] for _ in range(max(stages, 1))]
    whole, before = sum(target.weight.numel() for target in found), 0
    for target in found:
        size = target.weight.numel()
        groups[(2 * before + size) * len(groups) // (2 * whole)].append(target)  # by where its middle lies
        before += size
    return [group for group in groups if group]


def _by_glob(found: list[Target], globs: tuple[str, ...]) -> list[list[Target]]:
    """Groups by the first glob that matches; what none matches comes last."""
    groups: list[list[Target]] = [[] for _ in range(len(globs) + 1)]
    for target in found:
        matching = [i for i, glob in enumerate(globs) if any(fnmatchcase(slot.name, glob) for slot in target.slots)]
        groups[matching[0] if matching else -1].append(target)
    for glob, group in zip(globs, groups, strict=False):
        if not group:
            names = ", ".join(target.name for target in found) or "none"
            raise CompressionError(f"the group {glob!r} is empty; weights that the recipe compresses: {names}")
    return [group for group in groups if group]


def _endless(batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    empty = False
    while not empty:
        empty = True
        for batch in batches:
            if not isinstance(batch, tuple | list):
                raise InputError(f"a batch is a {type(batch).__name__}; give tuples of input tensors, (x,) for a model of one input")
            empty = False
            yield tuple(batch)
    raise InputError("there are no batches to fine-tune with, or no more: give a list or a DataLoader, not a generator")


def _tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
