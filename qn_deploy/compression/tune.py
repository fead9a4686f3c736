"""End-to-end fine-tuning of a compressed model: all centroids, scales, biases and norms together, with int8 in the loop.

Where iPQ (paper section 3.2) compresses group after group, this takes a model that is compressed already, and lets all of it learn from
the float model's outputs on unlabelled inputs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, islice
from math import inf
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy.compression.blockwise import BlockConfig, blockwise
from qn_deploy.compression.calibrate import recalibrated
from qn_deploy.compression.code_moves import CodeConfig, CodeMoves
from qn_deploy.compression.distill import Lesson, Loss, answer_of, distance, endless, layers_like, learning_rates
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.resume import RunFile, fingerprint
from qn_deploy.compression.student import learnt, student_of
from qn_deploy.errors import InputError
from qn_deploy.program.program import Program


@dataclass(frozen=True)
class TuneConfig:
    """How `tune` proceeds. A learning rate is relative: what Adam moves a parameter in one step, over its root mean square.

    Attributes:
        steps: of Adam, at most.
        minutes: stop after so long, if the steps are not done by then; None for no limit.
        lr: of centroids.
        scale_lr: of the scales.
        rest_lr: of biases, norms, weights that stayed float, and the values behind int8 and int4 weights.
        warmup: share of the run in which the learning rates rise; they fall to 0 along a line after it.
        clip: the largest norm of the gradient of all parameters together.
        hints: globs over names of layers, as their weights are named without ".weight"; what they compute is matched with the teacher's.
        hint_weight: what each hint counts beside the outputs.
        bfloat16: matrix products in bfloat16, which is faster where the processor has instructions for it.
        save_every: steps between two states in the file of `resume`.
        calibration: how many batches, from the first on, the ranges of activations are taken from at the end; 0 for none.
        codes: how the codes of tables learn as well; None leaves them as they are.
        blocks: how blocks of layers learn one after the other before; None does without. It takes of the minutes, but not of the steps.
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
    calibration: int = 8
    codes: CodeConfig | None = None
    blocks: BlockConfig | None = None

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
    program: Program,
    teacher: Program,
    batches: Iterable[Any],
    config: TuneConfig | None = None,
    loss: Loss | None = None,
    progress: Tell | None = None,
    resume: str | Path | None = None,
) -> Program:
    """Fine-tunes a compressed program end to end against the float one, on unlabelled inputs.

    All tables' centroids and scales, integer weights, biases and norms learn together, by Adam; the scales of integer weights stay, and so
    do codes, if they are not asked to learn. At the end the ranges of activations are taken anew.

    Args:
        program: what `compress` or `ipq` gave; it is not changed.
        teacher: the float program that it was made of.
        batches: gone through again and again, so give a list or a DataLoader. Each is a tuple with one tensor for each input, or a dict by
            the inputs' names.
        config: steps, minutes and learning rates.
        loss: (the student's outputs, the teacher's outputs), tuples of float tensors -> scalar; `distance` if None. Where padding must not
            count, let the model return what it should see, hidden states times their mask for example.
        progress: called after each step.
        resume: a file that keeps the run's state; if it is there, the run goes on from it, and ends with the same bits as one that was
            never stopped (a limit in minutes aside). Batches must come in the same order.

    Raises:
        CompressionError: the loss is no longer finite.
        InputError: a batch does not fit, there are none, or they can be gone through only once; a hint matches no layer; the file of
            `resume` is of another run, or damaged.
    """
    config = config or TuneConfig()
    stream = endless(program, batches)
    first = next(stream)
    stream = chain([first], stream)
    hints = layers_like(teacher, config.hints)
    student, guide = (student_of(each, hints) for each in (program, teacher))
    optimizer = torch.optim.Adam(learning_rates(student, config.lr, config.scale_lr, config.rest_lr))
    lesson = Lesson(student, optimizer, loss or distance, len(hints), config.hint_weight, config.clip, config.bfloat16)
    moves = CodeMoves(student, config.codes, lesson.value) if config.codes else None

    file, step, spent, prelude = None, 0, 0.0, 0.0
    names, limit = tuple(program.weights), 60 * (config.minutes or inf)
    if resume is not None:
        models = student.state_dict(), guide.state_dict()
        file = RunFile(Path(resume), fingerprint("tune", repr(config), *models, {str(i): tensor for i, tensor in enumerate(first)}))
    if found := file and file.load():
        tensors, position = found
        step, spent, prelude = position["step"], position["seconds"], position["prelude"]
        last = deque(islice(stream, step), config.codes.judges if config.codes else 0)  # batches that it has seen
        _restore(student, optimizer, moves, tensors, [(batch, answer_of(guide, batch, config.bfloat16)) for batch in last])
    elif config.blocks:
        begin = time.monotonic()
        few = [*islice(stream, min(config.blocks.batches, length_hint(batches, config.blocks.batches)))]
        stream = chain(few, stream)
        student.load_state_dict(student_of(blockwise(program, teacher, few, config.blocks, progress), hints).state_dict())
        spent = prelude = time.monotonic() - begin
        if file:
            file.save(_state(student, optimizer, moves), {"step": step, "seconds": spent, "prelude": prelude})

    def share() -> float:
        """Of the run that is done."""
        return max(step / config.steps, (spent - prelude) / (limit - prelude))

    begin = time.monotonic() - spent
    while step < config.steps and spent < limit:
        batch = next(stream)
        goal = answer_of(guide, batch, config.bfloat16)
        if moves:
            moves.before(share(), batch, goal)
        value = lesson.step(batch, goal, config.rate(share()), f"at step {step} of {config.steps}")
        step, spent = step + 1, time.monotonic() - begin
        over = step == config.steps or spent >= limit
        if file and (over or step % config.save_every == 0):
            file.save(_state(student, optimizer, moves), {"step": step, "seconds": spent, "prelude": prelude})
        if progress:
            progress(Progress(0, 1, "fine-tuning", names, 1.0 if over else share(), value))
    return recalibrated(learnt(program, student), teacher, batches, config.calibration, "tune", config)


def _state(student: nn.Module, optimizer: torch.optim.Optimizer, moves: CodeMoves | None) -> dict[str, Tensor]:
    model = {f"model/{name}": tensor for name, tensor in student.state_dict().items()}
    moments = {f"adam/{i}/{key}": value for i, entry in optimizer.state_dict()["state"].items() for key, value in entry.items()}
    return model | moments | {f"codes/{name}": tensor for name, tensor in (moves.state() if moves else {}).items()}


def _restore(
    student: nn.Module, optimizer: torch.optim.Optimizer, moves: CodeMoves | None, tensors: dict[str, Tensor], last: list[Any]
) -> None:
    """Puts back what `_state` gave."""
    kinds: dict[str, dict[str, Tensor]] = {"model": {}, "adam": {}, "codes": {}}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = tensor
    student.load_state_dict(kinds["model"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in kinds["adam"].items():
        index, _, key = name.partition("/")
        moments.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    if moves:
        moves.restore(kinds["codes"], last)
