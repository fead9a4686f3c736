"""A recipe applied to a program: each weight becomes a table or integers, with error feedback if there are inputs, in one walk."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from torch import Tensor, nn

from qn_deploy.compression.curvature import Curvature, Feedback
from qn_deploy.compression.feedback import integers_with_feedback, table_with_feedback
from qn_deploy.compression.losses import Losses, entry_of
from qn_deploy.compression.moments import Moments, geometry_of, measured, source_of
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.ranges import Ranges
from qn_deploy.compression.targets import Target, targets
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.lifted import with_constants
from qn_deploy.graph.sites import operator_name
from qn_deploy.graph.walk import Walk
from qn_deploy.memory import give_back
from qn_deploy.program.batches import NO_TUPLE, as_batches
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Batch, Program
from qn_deploy.recipe import Int4, Int8, Recipe, Table
from qn_deploy.weights.compressed import CompressedWeight, IntWeight
from qn_deploy.weights.tables import table_from_weight

STAGE = "compress"  # in the provenance


@dataclass(frozen=True)
class CompressConfig(Feedback):
    """How weights are compressed; what `Feedback` says counts only where there are batches.

    Attributes:
        seed: of the k-means, and of the samples of inputs.
        memory: MB (2^20 bytes) of activations that are held in memory; the rest waits in temporary files.
        rate: how much fewer bytes of an entropy-coded file count beside what is lost, for tables with error feedback: 0 is not at all, and
            1 as much as the bits that codes have. 0.3 took a sixth off a ResNet-20 at the same accuracy (docs/tried.md).

    Raises:
        InputError: the rate is negative, or what `Feedback` says.
    """

    seed: int = 0
    memory: int = 256
    rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rate < inf:
            raise InputError(f"rate is {self.rate}; expected 0 or more")


def compress(
    model: Program | nn.Module,
    recipe: Recipe,
    batches: Iterable[Any] | None = None,
    config: CompressConfig | None = None,
    progress: Tell | None = None,
) -> Program:
    """Compresses a trained model without any fine-tuning (paper section 3.2).

    With inputs, which need no labels, the same bytes lose far less: in one walk over the graph the inputs move through the float model and
    the compressed one side by side, each weight is coded with error feedback when its first reader is reached, and so makes up for some of
    what those before it have changed. The same walk finds the ranges for static int8 activations.

    Args:
        model: a float program, or a module, which is captured with the first batch; it is not changed.
        recipe: which weight is compressed how.
        batches: inputs, a few hundred samples in all, without padding; None for plain k-means. Each is a tuple with one tensor for each
            input, or a dict by the inputs' names.
        config: seed and how inputs are used.
        progress: called after each weight.

    Raises:
        CompressionError: a weight can't be compressed, or the program is compressed already; the message names the weight.
        InputError: there are no batches, or one does not fit; the message says which.
    """
    config = config or CompressConfig()
    if batches is not None:
        batches = list(batches)
    program = float_program(model, batches or ())
    found, left = targets(program, recipe)
    work = _Work(config, left, len(found), progress)
    ranges, losses = program.ranges, Losses(target.weight for target in found)
    if batches is None:
        for target in found:
            work.code(target)
    else:
        ranges = _one_pass(program, found, as_batches(program, batches), work, losses)
        give_back()
    return replace(
        program,
        exported=with_constants(program.exported, {name: weight.dequantize() for name, weight in work.weights.items()} | work.biases),
        weights=work.weights,
        ranges=ranges,
        recipe=recipe,
        left={**program.left, **left},
        provenance=(*program.provenance, entry_of(STAGE, config, losses.found())),
    )


class _Work:
    """What was compressed so far, and what it became."""

    def __init__(self, config: CompressConfig, left: dict[str, str], count: int, progress: Tell | None) -> None:
        self.config, self.left, self._count, self._progress = config, left, count, progress
        self.weights: dict[str, CompressedWeight] = {}
        self.biases: dict[str, Tensor] = {}  # that were moved

    def code(self, target: Target, curvature: Curvature | None = None, lookups: Tensor | None = None) -> Tensor:
        """Compresses a weight; what a runtime will see in its place."""
        try:
            weight, reason = coded(target, target.weight.value, self.config, curvature, lookups)
        except CompressionError as error:
            raise CompressionError(f"{target.name}: {error}") from None
        if reason:
            self.left[target.name] = reason
        self.weights[target.name], value = weight, weight.dequantize()
        if self._progress:
            self._progress(Progress(0, 1, "compressing", (target.name,), len(self.weights) / self._count))
        return value


def float_program(model: Program | nn.Module, batches: Iterable[Any]) -> Program:
    """The program of a model; a module is captured with the first batch.

    Raises:
        CompressionError: the program is compressed already.
        InputError: a module, and no batch.
    """
    if isinstance(model, Program):
        if model.weights:
            raise CompressionError(
                f"this program is compressed already, {next(iter(model.weights))} for one; compress the float program that it was made of"
            )
        return model
    first = next(iter(batches), None)
    if first is None:
        raise InputError("there are no batches, and a module is captured with the first; give some, or a Program of qn_deploy.capture")
    if isinstance(first, Mapping):
        return capture(model, kwargs=first)
    if not isinstance(first, tuple | list):
        raise InputError(NO_TUPLE.format(type(first).__name__))
    return capture(model, tuple(first))


def _one_pass(program: Program, found: list[Target], batches: list[Batch], work: _Work, losses: Losses) -> dict[str, tuple[float, float]]:
    """Compresses what was found while the batches walk through the program; gives the ranges of its values."""
    config, ranges = work.config, Ranges(len(batches))
    later = _of_later_readers(program, found, batches, config)
    walk = Walk(program.exported, batches, config.memory << 20, ranges.see, losses.see)
    for stage in stages_of(found):
        reader = stage[0].weight.readers[0]
        walk.until(reader)
        moments = moments_of(stage, walk, len(batches), config)
        if len(stage) == 1:
            moments += later.get(stage[0].name, Moments())
        try:
            curvature = None if moments.gram is None else Curvature.of(moments, config)
        except CompressionError as error:
            raise CompressionError(f"{stage[0].name}: {error}") from None
        for target in stage:
            value = work.code(target, curvature, moments.lookups)
            walk.replace(target.weight.node, value)
            if target.weight.bias is not None and (bias := bias_of(target, curvature, value)) is not None:
                node, (name, _) = target.weight.bias
                work.biases[name] = bias
                walk.replace(node, bias)
            if curvature is None and moments.lookups is None:
                reason = f"compressed without error feedback: {operator_name(reader)} tells nothing of what meets it"
                work.left.setdefault(target.name, reason)
    [last] = program.exported.graph.find_nodes(op="output")
    walk.until(last)
    return ranges.found()


def stages_of(found: list[Target]) -> list[list[Target]]:
    """Weights whose first readers read one value in one way, queries and keys, are compressed together, at the first."""
    stages: dict[object, list[Target]] = {}
    for target in found:
        reader = target.weight.readers[0]
        tied, biased = len(target.weight.readers) > 1, target.weight.bias is not None
        key = target.name if tied or (source := source_of(reader)) is None else (source, geometry_of(reader, target.weight.value), biased)
        stages.setdefault(key, []).append(target)
    return list(stages.values())


def moments_of(stage: list[Target], walk: Walk, count: int, config: CompressConfig) -> Moments:
    """What meets the weights of a stage, when the walk of `count` batches has come to their reader; nothing where that can't be told."""
    weight = stage[0].weight
    source = source_of(weight.readers[0])
    if source is None:
        return Moments()
    biased = weight.bias is not None
    return measured(weight.readers[0], weight.value, walk.values(source), count, config.seed, biased, config.correction_damping)


def _of_later_readers(program: Program, found: list[Target], batches: list[Batch], config: CompressConfig) -> dict[str, Moments]:
    """The moments of tied weights at all readers but the first, in the float model: where the first is reached, they lie ahead."""
    readers = {reader: target for target in found for reader in target.weight.readers[1:] if source_of(reader) is not None}
    walk = Walk(program.exported, batches, config.memory << 20)
    total: dict[str, Moments] = {}
    for reader in (node for node in program.exported.graph.nodes if node in readers):
        target, source = readers[reader], source_of(reader)
        assert source is not None
        walk.until(reader)
        moments = measured(reader, target.weight.value, walk.values(source), len(batches), config.seed)
        moments += total.get(target.name, Moments())
        total[target.name] = moments
    return total


def coded(
    target: Target, weight: Tensor, config: CompressConfig, curvature: Curvature | None = None, lookups: Tensor | None = None
) -> tuple[CompressedWeight, str | None]:
    """A weight in the form that a recipe asks for, and the reason why it is int8 where a table was asked for.

    Args:
        target: what the recipe says of it.
        weight: its values now.
        config: seed and rounds.
        curvature: of its inputs, if they are known.
        lookups: how often each row was looked up, if that is known.
    """
    method, per_channel = target.method, target.per_channel
    if not isinstance(method, Table):
        return _integers(weight, method, per_channel, curvature), None
    if reason := no_table(weight, method):
        return _integers(weight, Int8(), per_channel, curvature), reason
    if curvature is None or method.residual:
        table = table_from_weight(weight, method, config.seed, per_channel, lookups)
    else:
        table = table_with_feedback(weight, method, curvature, config.rounds, config.seed, per_channel, config.rate)
    plain = weight.numel() + table.scale.nbytes
    if table.nbytes >= plain:
        return _integers(weight, Int8(), per_channel, curvature), f"int8: a table takes {table.nbytes} bytes, int8 {plain}"
    return table, None


def bias_of(target: Target, curvature: Curvature | None, value: Tensor) -> Tensor | None:
    """The bias with which a compressed weight gives, in the mean, what the float model's layer gives; None if there is none to move."""
    if curvature is None or target.weight.bias is None:
        return None
    bias = target.weight.bias[1].value.detach()
    return curvature.bias(bias, target.weight.value, value).to(bias.dtype)


def no_table(weight: Tensor, method: Table) -> str | None:
    """Why a weight can't have the table that a recipe asks for, as far as its shape tells; None if it can."""
    row = weight[0].numel()
    return f"int8: blocks of {method.block_size} weights do not divide a row of {row}" if row % method.block_size else None


def _integers(weight: Tensor, method: Int8 | Int4, per_channel: bool, curvature: Curvature | None) -> IntWeight:
    if curvature is None:
        return IntWeight.from_float(weight, per_channel, method)
    return integers_with_feedback(weight, method, curvature, per_channel)
