"""What each form of each weight does to the outputs of a program: measured for all weights and forms together, in few passes.

A small change D of a weight moves the outputs by J D, where J are their derivatives. For v of random numbers of mean 0 and variance 1,
E (v . J D)^2 = |J D|^2, and v J is one backward pass, from which the effect of every change of every weight is read. Outputs count by their
own power, so that the sum over outputs of noise / signal is measured, whose -10 log10 is the SQNR in dB.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from operator import attrgetter

import torch
from torch import Tensor
from torch.fx import GraphModule

from qn_deploy.compression.compress import CompressConfig, bias_of, coded, moments_of, stages_of
from qn_deploy.compression.curvature import Curvature
from qn_deploy.compression.progress import Progress, Tell
from qn_deploy.compression.ranges import Ranges
from qn_deploy.compression.targets import Target
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.graph.walk import Walk
from qn_deploy.program.batches import has_dynamic_batch
from qn_deploy.program.program import Batch, Program, Range
from qn_deploy.recipe import Float, Int4, Int8, Method, Table
from qn_deploy.weights.compressed import CompressedWeight

_BLOCKS = (1, 2, 4, 8, 16)  # sizes of blocks, besides that of a whole kernel
_MOST = 32  # weights of a block
_DENSE_BOOK = 0.1  # of the codes' bytes: where one codebook of 256 takes more, one of 64 is tried too


@dataclass(frozen=True)
class Form:
    """What one weight may become.

    Attributes:
        method: by which it becomes that.
        weight: it; None where it stays float.
        size: bytes that a file needs for it.
        loss: noise / signal of the outputs if nothing but this weight changes, and the bias beside it.
        bias: what that becomes, if it makes up for the mean of what is lost.
    """

    method: Method
    weight: CompressedWeight | None
    size: int
    loss: float = 0.0
    bias: Tensor | None = None


@dataclass(frozen=True)
class Effects:
    """The forms of each weight, by its name, and the ranges of the float program's activations."""

    forms: dict[str, tuple[Form, ...]]
    ranges: dict[str, Range]


def ladder(target: Target) -> list[Method]:
    """The methods that are tried for a weight: float, int8, int4, and tables of several block sizes, sizes and numbers of codebooks."""
    weight = target.weight
    out, row = len(weight.value), weight.value[0].numel()
    kernel = prod(weight.kernel) if weight.kernel else 1
    sizes = sorted({*_BLOCKS, *(kernel * count for count in (1, 2) if kernel > 1)})
    methods: list[Method] = [Float(), Int8(), Int4()]
    for d in (size for size in sizes if size <= _MOST and row % size == 0):
        codes = out * row // d
        wanted = [16, 256] if 256 * d <= _DENSE_BOOK * codes else [16, 64, 256]
        tables = [Table(d, size) for size in wanted if d > 1 or size == 16]
        more = Table(d, 16, 4 * Table(d, 16).books(out, row // d))  # several small codebooks are worth a larger one
        methods += [table for table in (*tables, more) if table.pays(out, row)]
    return methods


def effects_of(
    program: Program, found: Sequence[Target], batches: Sequence[Batch], config: CompressConfig, draws: int, progress: Tell | None = None
) -> Effects:
    """Codes each weight in each form, on the inputs that it has in the float program, and measures what that does to the outputs.

    Args:
        program: float.
        found: its weights that can be compressed.
        batches: for error feedback, and to measure with.
        config: how weights are compressed, and how much memory the differences of weights may take at once.
        draws: backward passes; the relative error of a loss is about (2 / draws) ** 0.5, alike for all forms of a weight.
        progress: called after each weight.

    Raises:
        CompressionError: a weight can't be compressed.
        InputError: no output is of floating point.
    """
    forms, ranges = _coded(program, found, batches, config, progress)
    losses: dict[str, list[float]] = {}
    for group in _groups(found, forms, config.memory << 20):
        losses |= _losses(program, group, forms, batches, config.seed, draws)
        if progress:
            progress(Progress(1, 3, "measuring", tuple(target.name for target in group), len(losses) / len(found)))
    measured_forms = {
        name: tuple(replace(form, loss=loss) for form, loss in zip(each, losses[name], strict=True)) for name, each in forms.items()
    }
    return Effects(measured_forms, ranges)


def _coded(
    program: Program, found: Sequence[Target], batches: Sequence[Batch], config: CompressConfig, progress: Tell | None
) -> tuple[dict[str, list[Form]], dict[str, Range]]:
    forms: dict[str, list[Form]] = {}
    ranges = Ranges(len(batches))
    walk = Walk(program.exported, batches, config.memory << 20, ranges.see)
    for stage in stages_of(list(found)):
        walk.until(stage[0].weight.readers[0])
        moments = moments_of(stage, walk, len(batches), config)
        try:
            curvature = None if moments.gram is None else Curvature.of(moments, config)
            for target in stage:
                forms[target.name] = list(_forms(target, config, curvature, moments.lookups))
                if progress:
                    progress(Progress(0, 3, "trying forms", (target.name,), len(forms) / len(found)))
        except CompressionError as error:
            raise CompressionError(f"{target.name}: {error}") from None
    [last] = program.exported.graph.find_nodes(op="output")
    walk.until(last)
    return forms, ranges.found()


def _forms(target: Target, config: CompressConfig, curvature: Curvature | None, lookups: Tensor | None) -> Iterator[Form]:
    value = target.weight.value
    for method in ladder(target):
        if isinstance(method, Float):
            yield Form(method, None, value.nbytes)
            continue
        weight, reason = coded(Target(target.weight, method, target.per_channel), value, config, curvature, lookups)
        if not reason:
            yield Form(method, weight, weight.nbytes, bias=bias_of(target, curvature, weight.dequantize()))


def _groups(found: Sequence[Target], forms: dict[str, list[Form]], limit: int) -> Iterator[list[Target]]:
    """Weights whose differences in all forms fit into memory together."""
    group: list[Target] = []
    held = 0
    for target in found:
        size = target.weight.value.nbytes * len(forms[target.name])
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(target)
        held += size
    if group:
        yield group


def _losses(
    program: Program, group: list[Target], forms: dict[str, list[Form]], batches: Sequence[Batch], seed: int, draws: int
) -> dict[str, list[float]]:
    changes = {target.name: _changes(target, forms[target.name]) for target in group}
    module = copy.deepcopy(unlifted(program.exported))
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    held = [attrgetter(name)(module).requires_grad_() for target in group for name in changes[target.name]]
    generator = torch.Generator().manual_seed(seed)
    totals = {target.name: torch.zeros(len(forms[target.name]), dtype=torch.float64) for target in group}
    parts = _parts(program, batches, draws)
    powers = _powers(module, parts)
    for part in parts:
        gradients = iter(torch.autograd.grad(_projected(module, part, powers, generator), held, allow_unused=True))
        for name, moved in changes.items():
            felt = [change @ gradient.flatten() for change in moved.values() if (gradient := next(gradients)) is not None]
            if felt:
                totals[name] += sum(felt).double().square()  # type: ignore[union-attr]
    return {name: total.tolist() for name, total in totals.items()}


def _changes(target: Target, forms: Sequence[Form]) -> dict[str, Tensor]:
    """[forms, numbers]: how each form moves the weight, and the bias beside it, by their names."""
    value = target.weight.value
    found = {target.name: _stacked(value, [None if form.weight is None else form.weight.dequantize() for form in forms])}
    if target.weight.bias is not None and any(form.bias is not None for form in forms):
        name, bias = target.weight.bias[1]
        found[name] = _stacked(bias.detach(), [form.bias for form in forms])
    return found


def _stacked(value: Tensor, others: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([torch.zeros_like(value) if other is None else other - value for other in others]).flatten(1)


def _parts(program: Program, batches: Sequence[Batch], draws: int) -> list[Batch]:
    """At least as many parts of the batches as there are to be draws; again and again, where there are too few samples."""
    parts = list(batches)
    if has_dynamic_batch(program):
        each = -(-draws // len(batches))
        parts = [part for batch in batches for part in _split(batch, -(-len(batch[0]) // each))]
    return parts * -(-draws // len(parts))


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    count = len(batch[0])
    for start in range(0, count, size):
        yield tuple(tensor[start : start + size] if tensor.ndim and len(tensor) == count else tensor for tensor in batch)


@torch.no_grad()
def _powers(module: GraphModule, parts: Sequence[Batch]) -> list[float]:
    """The sum of squares of each output over all parts."""
    squares = [[float(_finite(output).double().square().sum()) for output in module(*part)] for part in parts]
    return [sum(each) for each in zip(*squares, strict=True)]


def _projected(module: GraphModule, batch: Batch, powers: Sequence[float], generator: torch.Generator) -> Tensor:
    """The sum over outputs of v . output / power ** 0.5, with v of normal random numbers."""
    total = torch.zeros(())
    for output, power in zip(module(*batch), powers, strict=True):
        if output.is_floating_point() and output.requires_grad and power:
            total = total + (_finite(output) * torch.randn(output.shape, generator=generator)).sum() / power**0.5
    if not total.requires_grad:
        raise InputError("no output of floating point depends on a weight that can be compressed; a budget has nothing to measure")
    return total


def _finite(output: Tensor) -> Tensor:
    return output.masked_fill(~torch.isfinite(output.detach()), 0.0)
