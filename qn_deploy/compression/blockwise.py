"""Block by block: each block of layers learns to give what the float one gives, on what the compressed blocks before it give.

As BRECQ (Li et al. 2021, arXiv:2102.05426) and OmniQuant (Shao et al. 2024, arXiv:2308.13137) do. It needs few inputs: a block has few
parameters, and its goal has far more numbers than the output of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qn_deploy.compression.calibrate import alike
from qn_deploy.compression.code_moves import CodeConfig, CodeMoves
from qn_deploy.compression.distill import Lesson, learning_rates, relative
from qn_deploy.compression.losses import entry_of
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.student import attach_weight, learnt
from qn_deploy.errors import InputError
from qn_deploy.graph.blocks import Block, blocks
from qn_deploy.graph.lifted import unlifted
from qn_deploy.graph.spool import Spool
from qn_deploy.memory import give_back
from qn_deploy.program.batches import as_batches
from qn_deploy.program.program import Batch, Program

_Pair = tuple[Batch, Batch]  # what a block reads, and what the float one gives
_OURS, _THEIRS = 0, 1


@dataclass(frozen=True)
class BlockConfig:
    """How blocks of layers learn, one after the other. Learning rates are relative, as those of `TuneConfig`; they fall to 0 along a line.

    Attributes:
        steps: of Adam for each block, one batch each.
        batches: how many, from the first on, move through the network.
        layers: compressed weights that a block holds at least.
        lr: of centroids.
        scale_lr: of the scales.
        rest_lr: of biases, norms, weights that stayed float, and the values behind int8 and int4 weights.
        codes: how the codes of tables learn as well; None leaves them as they are.
        memory: MB (2^20 bytes) of values between two blocks that are held in memory; the rest waits in temporary files.
    """

    steps: int = 100
    batches: int = 32
    layers: int = 2
    lr: float = 2e-3
    scale_lr: float = 2e-3
    rest_lr: float = 2e-3
    codes: CodeConfig | None = None
    memory: int = 256

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batches < 1 or self.layers < 1:
            raise InputError(f"steps {self.steps}, batches {self.batches}, layers {self.layers}; expected 0 or more, 1 or more, 1 or more")


def blockwise(
    program: Program, teacher: Program, batches: Iterable[Any], config: BlockConfig | None = None, progress: Tell | None = None
) -> Program:
    """Lets the blocks of a compressed program learn one after the other, on unlabelled inputs that move through the graph once.

    Blocks end where one value alone carries on what compressed weights before it gave: between residual blocks, and in a chain of
    layers. Of a block, all learns that learns in `tune`; a parameter that several blocks read stays. A block that is no closer to the float
    one afterwards stays as it was.

    Args:
        program: compressed; it is not changed. Its ranges of activations are not taken anew.
        teacher: the float program that it was made of.
        batches: each is a tuple with one tensor for each input, or a dict by the inputs' names.
        config: steps, batches and learning rates.
        progress: called after each step.

    Raises:
        CompressionError: the loss is no longer finite.
        InputError: a batch does not fit, or there are none; the teacher is another network.
    """
    config = config or BlockConfig()
    if not alike(program, teacher):
        raise InputError("block by block needs the float program that the compressed one was made of; this teacher has another graph")
    graphs = [unlifted(each.exported) for each in (program, teacher)]
    ours, theirs = (blocks(graph, program.weights, config.layers) for graph in graphs)
    inputs = [node.name for node in graphs[_OURS].graph.find_nodes(op="placeholder")]  # not the user's names: "input" becomes "input_1"
    flow = _Flow(ours, inputs, as_batches(program, islice(batches, config.batches)), config.memory)
    for index, (block, whole) in enumerate(zip(ours, theirs, strict=True)):
        flow.through(index, whole.module, _THEIRS)
        names = tuple(name for name in program.weights if name in block.own)
        student = _student(program, block)
        if names and config.steps:
            pupil, told = _student(program, block), partial(_tell, progress, index, len(ours), names)
            if _taught(pupil, partial(flow.pairs, index), config, told, f"the block of {', '.join(names)}"):
                program, student = learnt(program, pupil), pupil
        flow.through(index, student, _OURS)
        flow.forget(index)
    return replace(program, provenance=(*program.provenance, entry_of("blockwise", config, {})))


def _taught(
    student: GraphModule, pairs: Callable[[], Iterator[_Pair]], config: BlockConfig, told: Callable[[float, float], None], where: str
) -> bool:
    """Gives the block its lessons; True if it came closer to the float one.

    Args:
        student: the block, which learns in place.
        pairs: goes through the batches anew: what the block reads of each, and what the float one gives.
        config: steps and learning rates.
        told: takes the share that is done, and the loss.
        where: what messages call it.
    """
    lesson = Lesson(student, torch.optim.Adam(learning_rates(student, config.lr, config.scale_lr, config.rest_lr)), _apart)
    moves = CodeMoves(student, config.codes, lesson.value) if config.codes else None
    before = _lost(lesson, pairs())
    again = chain.from_iterable(pairs() for _ in count())
    for step, (batch, goal) in zip(range(config.steps), again, strict=False):
        share = step / config.steps
        if moves:
            moves.before(share, batch, goal)
        told((step + 1) / config.steps, lesson.step(batch, goal, 1 - share, where))
    return _lost(lesson, pairs()) < before


def _lost(lesson: Lesson, pairs: Iterator[_Pair]) -> float:
    return sum(lesson.value(*pair) for pair in pairs)


def _student(program: Program, block: Block) -> GraphModule:
    """The block as a module of its own, in which what no other block reads learns."""
    student = copy.deepcopy(block.module)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in block.own and parameter.is_floating_point())
    for name, weight in program.weights.items():
        if name in block.own:
            attach_weight(student, name, weight)
    return student


def _tell(progress: Tell | None, stage: int, stages: int, names: tuple[str, ...], share: float, loss: float) -> None:
    if progress:
        progress(Progress(stage, stages, "fine-tuning a block", names, share, loss))


def _apart(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([relative(*pair) for pair in zip(ours, theirs, strict=True)]).sum()


class _Flow:
    """Values between blocks, of the compressed program and of the float one, until their last reader.

    Args:
        parts: the blocks.
        inputs: nodes of what the user gives.
        batches: of it.
        memory: MB of values that are held in memory.
    """

    def __init__(self, parts: Sequence[Block], inputs: Sequence[str], batches: Sequence[Batch], memory: int) -> None:
        self._parts, self._count = parts, len(batches)
        self._spool = Spool(memory << 20)
        self._gone: list[list[str]] = [[] for _ in parts]  # what no block after this one reads
        last = {name: index for index, block in enumerate(parts) for name in (*block.outputs, *block.inputs)}
        for name, index in last.items():
            self._gone[index].append(name)
        for number, batch in enumerate(batches):
            for name, value in zip(inputs, batch, strict=True):
                if name in last:
                    for side in (_OURS, _THEIRS):
                        self._spool.put((name, side), number, value)

    def pairs(self, index: int) -> Iterator[_Pair]:
        """Of each batch, what a block reads in the compressed program, and what it gives in the float one."""
        block = self._parts[index]
        for number in range(self._count):
            yield self._read(block.inputs, _OURS, number), self._read(block.outputs, _THEIRS, number)

    @torch.no_grad()
    def through(self, index: int, module: nn.Module, side: int) -> None:
        """Takes the values of one side through a block."""
        block = self._parts[index]
        for number in range(self._count):
            for name, value in zip(block.outputs, module(*self._read(block.inputs, side, number)), strict=True):
                self._spool.put((name, side), number, value)

    def forget(self, index: int) -> None:
        """Drops what no block after this one reads."""
        for name in self._gone[index]:
            for side in (_OURS, _THEIRS):
                for number in range(self._count):
                    self._spool.get((name, side), number, last=True)
        give_back()

    def _read(self, names: Sequence[str], side: int, number: int) -> Batch:
        return tuple(self._spool.get((name, side), number) for name in names)
