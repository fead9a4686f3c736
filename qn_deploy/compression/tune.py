"""End-to-end fine-tuning of a compressed model: all centroids, scales, biases and norms together, with int8 in the loop.

Where iPQ (paper section 3.2) compresses group after group, this takes a model that is compressed already, and lets all of it learn from
the float model's outputs on unlabelled inputs.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy.compression.apply import Compressed
from qn_deploy.compression.distill import Batch, Lesson, Loss, distance, endless, modules_like, trainable
from qn_deploy.compression.layers import round_centroids, tables
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.resume import RunFile, fingerprint
from qn_deploy.errors import InputError

_LEAST_RMS = 1e-3  # what a parameter of zeros counts as, so that it can leave zero (Adafactor's rule)


@dataclass(frozen=True)
class Tune:
    """How `tune` proceeds. A learning rate is relative: what Adam moves a parameter in one step, over its root mean square.

    Attributes:
        steps: of Adam, at most.
        minutes: stop after so long, if the steps are not done by then; None for no limit.
        lr: of centroids.
        scale_lr: of the scales.
        rest_lr: of biases, norms, weights that stayed float, and the values behind int8 and int4 weights.
        warmup: share of the run in which the learning rates rise; they fall to 0 along a line after it.
        clip: the largest norm of the gradient of all parameters together.
        hints: globs over names of modules; the student's hidden states there are matched with the teacher's. A layer that BatchNorm was
            folded into has no counterpart in the teacher: name the BatchNorm instead.
        hint_weight: what each hint counts beside the outputs.
        bfloat16: matrix products in bfloat16, which is faster where the processor has instructions for it.
        save_every: steps between two states in the file of `resume`.
    """

    steps: int = 1000
    minutes: float | None = None
    lr: float = 2e-3
    scale_lr: float = 2e-3
    rest_lr: float = 2e-3
    warmup: float = 0.05
    clip: float = 1.0
    hints: tuple[str, ...] = ()
    hint_weight: float = 0.3
    bfloat16: bool = False
    save_every: int = 200

    def __post_init__(self) -> None:
        if self.steps < 0 or self.save_every < 1 or not 0 <= self.warmup < 1 or (self.minutes is not None and self.minutes <= 0):
            raise InputError(
                f"steps {self.steps}, save_every {self.save_every}, warmup {self.warmup}, minutes {self.minutes}; "
                "expected 0 or more, 1 or more, 0 to below 1, more than 0 or None"
            )

    def rate(self, share: float) -> float:
        """What of the learning rates holds when `share` of the run is done."""
        rising = share / self.warmup if share < self.warmup else 1.0
        return min(rising, (1 - share) / (1 - self.warmup))


def tune(
    compressed: Compressed,
    batches: Iterable[Batch],
    config: Tune | None = None,
    loss: Loss | None = None,
    progress: Tell | None = None,
    resume: str | Path | None = None,
) -> Compressed:
    """Fine-tunes a compressed model end to end against its float reference, on unlabelled inputs.

    All tables' centroids and scales, integer weights, biases and norms learn together, by Adam; codes and the scales of integer weights
    stay. The student stays in eval mode: dropout is off.

    Args:
        compressed: what `compress` or `ipq` gave; it is not changed.
        batches: tuples of input tensors; gone through again and again, so give a list or a DataLoader.
        config: steps, minutes and learning rates.
        loss: (the student's outputs, the teacher's outputs) -> scalar; `distance` if None. Where padding must not count, let both
            models return what it should see, hidden states times their mask for example.
        progress: called after each step.
        resume: a file that keeps the run's state; if it is there, the run goes on from it, and ends with the same bits as one that was
            never stopped (a limit in minutes aside). Batches must come in the same order.

    Raises:
        CompressionError: the loss is no longer finite.
        InputError: the batches are empty, hold no tuples, or can be gone through only once; a hint matches no module; the file of
            `resume` is of another run, or damaged.
    """
    config = config or Tune()
    stream = endless(batches)
    first = next(stream)
    stream = chain([first], stream)
    student = trainable(copy.deepcopy(compressed.model))
    round_centroids(student)
    optimizer = torch.optim.Adam(_learning_rates(student, config))
    hints = modules_like(student, config.hints)
    lesson = Lesson(student, compressed.reference, optimizer, loss or distance, hints, config.hint_weight, config.clip, config.bfloat16)

    file, step, spent = None, 0, 0.0
    if resume is not None:
        models = compressed.model.state_dict(), compressed.reference.state_dict()
        file = RunFile(Path(resume), fingerprint("tune", repr(config), *models, {str(i): tensor for i, tensor in enumerate(first)}))
        if found := file.load():
            step, spent = _restore(student, optimizer, *found)
            deque(islice(stream, step), 0)  # batches that it has seen
    names, limit = tuple(compressed.weights), 60 * (config.minutes or inf)
    begin = time.monotonic() - spent
    while step < config.steps and spent < limit:
        value = lesson.step(next(stream), config.rate(max(step / config.steps, spent / limit)), f"at step {step} of {config.steps}")
        step, spent = step + 1, time.monotonic() - begin
        last = step == config.steps or spent >= limit
        if file and (last or step % config.save_every == 0):
            file.save(_state(student, optimizer), {"step": step, "seconds": spent})
        if progress:
            progress(Progress(0, 1, "fine-tuning", names, 1.0 if last else max(step / config.steps, spent / limit), value))
    return replace(compressed, model=student)


def _learning_rates(student: nn.Module, config: Tune) -> list[dict[str, Any]]:
    """One group of the optimizer for each parameter, since each has a unit of its own: centroids that of int8 steps."""
    relative: dict[int, float] = {}
    for _, (centroids, scale, *residual) in tables(student):
        relative |= {id(book): config.lr for book in (centroids, *residual)} | {id(scale): config.scale_lr}
    groups = []
    for parameter in student.parameters():
        rms = float(parameter.detach().square().mean().sqrt())
        lr = relative[id(parameter)] * rms if id(parameter) in relative else config.rest_lr * max(rms, _LEAST_RMS)
        groups.append({"params": [parameter], "lr": lr})
    return groups


def _state(student: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {f"adam/{i}/{key}": value for i, entry in optimizer.state_dict()["state"].items() for key, value in entry.items()}
    return {f"model/{name}": tensor for name, tensor in student.state_dict().items()} | moments


def _restore(
    student: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], position: dict[str, Any]
) -> tuple[int, float]:
    """Puts a saved state back; the steps done and the seconds spent until then."""
    student.load_state_dict({name: tensor for key, tensor in tensors.items() for kind, _, name in [key.partition("/")] if kind == "model"})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("adam/"):
            _, index, name = key.split("/")
            moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return position["step"], position["seconds"]
