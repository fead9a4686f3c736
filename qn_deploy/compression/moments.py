"""How the inputs of an operator go together: what error feedback has to know of them.

An input is what meets one row of the weight: a token's features, or a pixel's patch. A sample of them says enough, so patches are gathered
at some positions instead of unfolding the whole value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.fx import Node

from qn_deploy.compression.sample import Half, agreement, shrinkage
from qn_deploy.graph.operators import Kind, kind_of

_FLOOR = 1e-3  # of the mean square over all inputs, added to that of each: an input next to zero is not blown up to unit size
_SILENT = 1e-30  # mean square of a batch's inputs that tell nothing: scaled to unit size, they would outweigh all others
_TINY = torch.finfo(torch.float32).tiny
_SAMPLE, _PER_WEIGHT = 32_768, 512  # inputs that are looked at: so many in all groups together, but this many for each weight of a row


@dataclass(frozen=True)
class Moments:
    """What the readers of a weight read beside it.

    Each input is scaled to unit mean square: without that, the few huge activations of a Transformer own the sums, and error feedback
    hurts.

    Attributes:
        gram: float32 [groups, n, n], the sum of x^T x over inputs x [1, n]; None if the weight is only looked up.
        shift: float32 [groups, n, n], the sum of (y - x)^T x, where y is the same input in the float model, scaled by the same factor.
        noise: float32 [groups], the squared error of `gram`, which is known from a sample only: |gram - what all inputs would give|^2.
        agreed: float32 [groups, 2], how far both halves of the sample agree on what `shift` asks for, see `agreement`; None if nothing
            tells.
        mean: float32 [groups, 1, n], the mean of x, if a bias can make up for what it loses; x and y above are then less their means.
        their_mean: the same of y.
        lookups: float32 [rows], how often each row of an embedding was looked up; None if the weight is no embedding's.
    """

    gram: Tensor | None = None
    shift: Tensor | None = None
    noise: Tensor | None = None
    agreed: Tensor | None = None
    mean: Tensor | None = None
    their_mean: Tensor | None = None
    lookups: Tensor | None = None

    def __iadd__(self, other: Moments) -> Moments:
        """The sum, in the memory of the first: a wide layer's moments are large."""
        return Moments(*(_sum(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class Geometry:
    """Where a convolution reads, each field with one number for each dimension; of a linear layer they are empty.

    Attributes:
        kernel, stride, dilation: as the operator has them.
        before: padding with zeros before the first element; after the last there is as much, or one more where "same" is uneven.
        padded: padding on both sides together.
        groups: of channels.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    padded: tuple[int, ...] = ()
    groups: int = 1

    def outputs(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """Positions at which the kernel is put down in an input of these sizes."""
        each = zip(sizes, self.kernel, self.stride, self.dilation, self.padded, strict=True)
        return tuple((size + pad - dilation * (kernel - 1) - 1) // stride + 1 for size, kernel, stride, dilation, pad in each)


def source_of(node: Node) -> Node | None:
    """The value whose moments an operator's weight needs: what a layer is fed with, or a lookup's indices; None if there are none."""
    kind = kind_of(node)
    argument = node.args[0] if kind in (Kind.LINEAR, Kind.CONVOLUTION) else node.args[1] if kind is Kind.LOOKUP else None
    return argument if isinstance(argument, Node) else None


def geometry_of(node: Node, weight: Tensor) -> Geometry:
    """Where an operator reads, by its arguments; only those of `source_of` have moments."""
    if kind_of(node) is not Kind.CONVOLUTION:
        return Geometry()
    kernel = tuple(weight.shape[2:])
    given = dict(zip(("stride", "padding", "dilation", "groups"), node.args[3:], strict=False)) | node.kwargs

    def each(name: str, usual: int) -> tuple[int, ...]:
        value = given.get(name, usual)
        values = (value,) if isinstance(value, int) else tuple(value)  # type: ignore[arg-type]
        return values * len(kernel) if len(values) == 1 else values

    stride, dilation = each("stride", 1), each("dilation", 1)
    if isinstance(padding := given.get("padding", 0), str):
        same = padding == "same"
        padded = tuple(same * step * (size - 1) for size, step in zip(kernel, dilation, strict=True))
    else:
        padded = tuple(2 * side for side in each("padding", 0))
    groups = given.get("groups", 1)
    assert isinstance(groups, int)
    return Geometry(kernel, stride, dilation, tuple(side // 2 for side in padded), padded, groups)


def measured(
    node: Node,
    weight: Tensor,
    values: Iterable[tuple[Tensor, Tensor]],
    batches: int,
    seed: int = 0,
    bias: bool = False,
    damping: float = 0.0,
) -> Moments:
    """The moments of one reader of a weight.

    Args:
        node: the reader.
        weight: of which only the shape counts.
        values: (the compressed model's, the float model's) value of `source_of(node)`, of each batch.
        batches: how many there are; each gives an equal share of the sample.
        seed: of the sample.
        bias: the reader adds one that can make up for what the mean loses.
        damping: with which the agreement of both halves is judged, at least.
    """
    if kind_of(node) is Kind.LOOKUP:
        total = Moments()
        for indices, _ in values:
            total += Moments(lookups=torch.bincount(indices.flatten(), minlength=len(weight)).float())
        return total
    geometry = geometry_of(node, weight)
    size = weight[0].numel()
    share = -(-max(_SAMPLE // geometry.groups, _PER_WEIGHT * size) // batches)
    generator = torch.Generator().manual_seed(seed)
    # Of every other batch: how far they differ tells how well both are known.
    halves = Half(geometry.groups, size, bias), Half(geometry.groups, size, bias)
    moved = False  # something before was compressed
    for index, (ours, theirs) in enumerate(values):
        positions = sampled_positions(ours, geometry, share, generator)
        x = inputs_at(ours, geometry, positions)
        square = torch.linalg.vector_norm(x, dim=2, keepdim=True).square() / size
        usual = square.mean()
        factor = (square + _FLOOR * usual).rsqrt() if usual > _SILENT else torch.zeros_like(square)
        half, change = halves[index % 2], None
        if theirs is not ours:
            moved = True
            change = inputs_at(theirs, geometry, positions).sub_(x).mul_(factor)
        half.add(x.mul_(factor), factor, change)
    return _joined(*halves, bias, damping if moved else None)


def _joined(first: Half, second: Half, bias: bool, damping: float | None) -> Moments:
    """The moments of all inputs, by the sums over two halves of them, whose memory becomes theirs."""
    if bias:
        (mean, change), (other_mean, other_change) = first.centre(), second.centre()
    noise, agreed = first.apart(second), None
    if damping is not None and first.count and second.count:
        least = shrinkage(first.gram + second.gram, noise).clamp_min(damping)
        agreed = agreement((first.gram, second.gram), (first.shift, second.shift), least)
    gram, shift = first.gram.add_(second.gram), first.shift.add_(second.shift)
    if not bias:
        return Moments(gram, shift, noise, agreed)
    ones = (first.ones + second.ones).clamp_min(_TINY)
    between, shares = mean - other_mean, (first.ones / ones, second.ones / ones)
    weight = shares[0] * second.ones
    gram.baddbmm_(between.mT, between * weight)
    shift.baddbmm_((change - other_change).mT, between * weight)
    mean, change = shares[0] * mean + shares[1] * other_mean, shares[0] * change + shares[1] * other_change
    return Moments(gram, shift, noise, agreed, mean, mean + change)


def inputs_at(value: Tensor, geometry: Geometry, positions: Tensor) -> Tensor:
    """float32 [groups, P, n] in memory of its own: what meets the rows of the weight at some positions.

    Args:
        value: what the operator reads, [..., n] of a linear layer, [N, channels, ...] of a convolution.
        geometry: of the operator.
        positions: int64 [P], into the output's positions, all dimensions but the channels laid end to end.
    """
    if not geometry.kernel:
        return value.flatten(0, -2)[positions].float()[None] if value.ndim > 1 else value.float().clone()[None, None]
    if prod(geometry.kernel) == 1 and not any(geometry.padded):
        every = [slice(None, None, step) for step in (1, 1, *geometry.stride)]
        rows = value[tuple(every)].movedim(1, -1)  # [N, ..., channels]
        is_all = len(positions) == prod(rows.shape[:-1])
        found = rows.flatten(0, -2) if is_all else rows[torch.unravel_index(positions, rows.shape[:-1])]
        found = found.reshape(len(positions), geometry.groups, -1).transpose(0, 1)
        return found.to(torch.float32, copy=is_all, memory_format=torch.contiguous_format)
    sizes = tuple(value.shape[2:])
    image, *at = torch.unravel_index(positions, (len(value), *geometry.outputs(sizes)))
    index, inside = torch.zeros(len(positions), prod(geometry.kernel), dtype=torch.int64), torch.ones((), dtype=torch.bool)
    offsets = torch.tensor(list(product(*(range(side) for side in geometry.kernel))))  # [kernel, dimensions]
    for dimension, size in enumerate(sizes):
        where = at[dimension][:, None] * geometry.stride[dimension] - geometry.before[dimension]
        where = where + offsets[:, dimension] * geometry.dilation[dimension]  # [P, kernel]
        inside = inside & (where >= 0) & (where < size)
        index = index * size + where.clamp(0, size - 1)
    if index.numel() < len(value) * prod(sizes):  # a few places
        gathered = value.flatten(2)[image[:, None], :, index].float()  # [P, kernel, channels]
        patches = gathered.mul_(inside[..., None]).reshape(*index.shape, geometry.groups, -1).permute(2, 0, 3, 1)
    else:
        # One channel lies beside itself, so it is gathered by itself; and groups of one channel, depthwise, are then in their final order.
        flat = (image[:, None] * prod(sizes) + index).flatten()
        gathered = value.transpose(0, 1).flatten(1).index_select(1, flat).float()
        patches = gathered.reshape(geometry.groups, -1, *index.shape).mul_(inside).transpose(1, 2)  # outside lie zeros
    return torch.flatten(patches, 2)  # of [groups, P, channels, kernel]


def sampled_positions(value: Tensor, geometry: Geometry, most: int, generator: torch.Generator) -> Tensor:
    """int64 [P]: all positions of an operator's output, or `most` of them by chance, in order."""
    places = prod(value.shape[:-1]) if not geometry.kernel else len(value) * prod(geometry.outputs(tuple(value.shape[2:])))
    return torch.arange(places) if places <= most else torch.randperm(places, generator=generator)[:most].sort().values


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return second if first is None else first if second is None else first.add_(second)
