"""iPQ: groups of layers are compressed one after the other, and what is left learns to make up for each (paper section 3.2)."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from math import cos, pi
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy.compression.calibrate import recalibrated
from qn_deploy.compression.compress import CompressConfig, coded, float_program
from qn_deploy.compression.distill import Lesson, Loss, answer_of, distance, endless
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.resume import RunFile, fingerprint
from qn_deploy.compression.student import attach_weight, learnt, round_centroids, student_of
from qn_deploy.compression.targets import Target, targets
from qn_deploy.errors import CompressionError
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int4, Recipe
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight

Group = str | tuple[str, ...]

# By the names that fairseq, transformers, timm and torch.nn give them.
FFN = ("*fc[12]*", "*linear[12]*", "*intermediate*", "*[0-9].output.dense*", "*mlp*", "*ffn*", "*feed_forward*", "*ff.net*")
EMBEDDING = ("*emb*", "*wte*", "*wpe*")
ATTENTION = ("*attn*", "*attention*")
TRANSFORMER: tuple[Group, ...] = (FFN, EMBEDDING, ATTENTION)
"""The paper's order for Transformers: feed-forward layers, embedding, attention."""


@dataclass(frozen=True)
class IPQConfig:
    """How iPQ proceeds.

    Attributes:
        groups: globs over parameter names, each one or a tuple; the weights that the first matches are compressed first, and so on,
            weights that none matches last. Empty: the paper's order. With attention in the model that is `TRANSFORMER`, as far as
            the model has such weights; else from the lowest layer to the highest, cut into `stages` groups of about equal bytes.
        stages: how many groups, where the order is that of the layers.
        steps: of fine-tuning after each group.
        final_steps: of fine-tuning at the end, with int8 centroids in the loop.
        lr: learning rate at the start of each group; it falls to 0 along a cosine.
        momentum: of SGD.
        temperature: of the teacher's and the student's logits.
        seed: of the k-means.
        calibration: how many batches, from the first on, the ranges of activations are taken from at the end; 0 for none.
    """

    groups: tuple[Group, ...] = ()
    stages: int = 3
    steps: int = 100
    final_steps: int = 100
    lr: float = 0.01
    momentum: float = 0.9
    temperature: float = 1.0
    seed: int = 0
    calibration: int = 8


def ipq(
    model: Program | nn.Module,
    recipe: Recipe,
    batches: Iterable[Any],
    config: IPQConfig | None = None,
    teacher: Program | nn.Module | None = None,
    progress: Tell | None = None,
    loss: Loss | None = None,
    resume: str | Path | None = None,
) -> Program:
    """Compresses a trained model by iterative product quantization with a teacher (paper section 3.2); needs no labels.

    At the end the ranges of activations are taken.

    Args:
        model: a float program, or a module, which is captured with the first batch; it is not changed.
        recipe: which weight is compressed how.
        batches: gone through again and again, so give a list or a DataLoader. Each is a tuple with one tensor for each input, or a dict by
            the inputs' names.
        config: groups, steps and learning rate.
        teacher: whose outputs the student learns, a program or a module that takes the same inputs; the float model itself if None.
        progress: called after each weight that is compressed, and each step of fine-tuning; the last stage is the int8 stage.
        loss: (the student's outputs, the teacher's outputs), tuples of float tensors -> scalar; `distance` if None.
        resume: a file that keeps the state after each stage; if it is there, the run goes on after the last finished stage, and ends
            with the same bits as one that was never stopped. Batches must come in the same order.

    Raises:
        CompressionError: a weight can't be compressed, or the loss is no longer finite; the message names the weight or the group.
        InputError: a batch does not fit, there are none, or they can be gone through only once; the file of `resume` is of another run,
            or damaged.
    """
    config = config or IPQConfig()
    program = float_program(model, batches)
    stream = endless(program, batches)
    example = next(stream)
    student, guide = student_of(program), _guide(program if teacher is None else teacher)
    found, left = targets(program, recipe)
    groups = _in_order(found, config)

    file, done = None, 0
    if resume is not None:
        models = student.state_dict(), guide.state_dict()
        run = fingerprint("ipq", repr(config), recipe.to_json(), *models, {str(i): tensor for i, tensor in enumerate(example)})
        file = RunFile(Path(resume), run)
        if state := file.load():
            tensors, position = state
            done, left = position["stages"], position["left"]
            finished = [target for group in groups[:done] for target in group]
            _restore(student, finished, tensors, int8_in_loop=done > len(groups))
            deque(islice(stream, done * config.steps), 0)  # batches that it has seen

    tell = progress or (lambda at: None)
    for stage in range(done, len(groups) + 1):
        at = partial(Progress, stage, len(groups) + 1)
        if stage < len(groups):
            group, steps = groups[stage], config.steps
            names = tuple(target.name for target in group)
            where = f"after group {stage} ({', '.join(names)})"
            for i, target in enumerate(group, 1):
                weight, reason = coded(target, student.get_parameter(target.name).detach(), CompressConfig(seed=config.seed))
                attach_weight(student, target.name, weight, int8_in_loop=False)
                if reason:
                    left[target.name] = reason
                tell(at("compressing", (target.name,), i / len(group)))
        else:
            names, where, steps = tuple(target.name for target in found), "in the int8 stage", config.final_steps
            round_centroids(student)
        optimizer = torch.optim.SGD(student.parameters(), lr=config.lr, momentum=config.momentum)
        lesson = Lesson(student, optimizer, loss or partial(distance, temperature=config.temperature))
        for step in range(steps):
            batch = next(stream)
            value = lesson.step(batch, answer_of(guide, batch), 0.5 + 0.5 * cos(pi * step / steps), where)
            tell(at("fine-tuning", names, (step + 1) / steps, value))
        if file:
            file.save(student.state_dict(), {"stages": stage + 1, "left": left})
    done_program = replace(learnt(program, student), recipe=recipe, left={**program.left, **left})
    return recalibrated(done_program, program, batches, config.calibration, "ipq", config)


def _guide(teacher: Program | nn.Module) -> nn.Module:
    return student_of(teacher) if isinstance(teacher, Program) else copy.deepcopy(teacher).eval()


def _restore(student: nn.Module, finished: list[Target], state: dict[str, Tensor], int8_in_loop: bool) -> None:
    """Gives the student the tables and integers that a saved state speaks of, then the state."""
    for target in finished:
        attach_weight(student, target.name, _blank(target, state), int8_in_loop)
    student.load_state_dict(state)


def _blank(target: Target, state: dict[str, Tensor]) -> CompressedWeight:
    """A compressed weight of the form that the saved one has; of its numbers, only the codes and the scale of integers are right."""
    shape, name = tuple(target.weight.value.shape), target.name
    path, _, leaf = name.rpartition(".")
    saved = f"{path}.parametrizations.{leaf}".lstrip(".")
    if f"{saved}.original" in state:
        bits = target.method.bits if isinstance(target.method, Int4) else 8
        return IntWeight(torch.zeros(shape, dtype=torch.int8), state[f"{saved}.0.scale"], bits)
    table = None
    for codes, book in (("residual_codes", "original2"), ("codes", "original0")):
        if f"{saved}.{book}" in state:
            centroids = torch.zeros_like(state[f"{saved}.{book}"], dtype=torch.int8)
            table = PQWeight(state[f"{saved}.0.{codes}"], centroids, torch.ones_like(state[f"{saved}.original1"]), shape, residual=table)
    assert table is not None
    return table


def _in_order(found: list[Target], config: IPQConfig) -> list[list[Target]]:
    if config.groups:
        groups = _by_glob(found, config.groups)
        for globs, group in zip(config.groups, groups, strict=False):
            if not group:
                names = ", ".join(target.name for target in found) or "none"
                raise CompressionError(f"the group {globs!r} is empty; weights that the recipe compresses: {names}")
    elif any(_matches(target, ATTENTION) for target in found):
        groups = _by_glob(found, TRANSFORMER)
    else:
        groups = _by_bytes(found, config.stages)
    return [group for group in groups if group]


def _by_bytes(found: list[Target], stages: int) -> list[list[Target]]:
    """Consecutive groups of about equal bytes; `stages` of them, some perhaps empty."""
    groups: list[list[Target]] = [[] for _ in range(max(stages, 1))]
    whole, before = sum(target.weight.value.numel() for target in found), 0
    for target in found:
        size = target.weight.value.numel()
        groups[(2 * before + size) * len(groups) // (2 * whole)].append(target)  # by where its middle lies
        before += size
    return groups


def _by_glob(found: list[Target], groups: tuple[Group, ...]) -> list[list[Target]]:
    """For each group what it is the first to match; then what none matches."""
    first = [next((i for i, globs in enumerate(groups) if _matches(target, globs)), len(groups)) for target in found]
    return [[target for target, i in zip(found, first, strict=True) if i == index] for index in range(len(groups) + 1)]


def _matches(target: Target, globs: Group) -> bool:
    patterns = (globs,) if isinstance(globs, str) else globs
    return any(fnmatchcase(target.name, pattern) for pattern in patterns)
