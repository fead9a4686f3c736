"""How the inputs of each layer go together: their second moments over calibration batches, layer after layer as the model calls them.

A layer is measured behind compressed layers, so that it can make up for what those have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from qn_deploy.compression.distill import Batch, as_batch
from qn_deploy.errors import InputError
from qn_deploy.recipe.parameters import Slot

READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)  # they use their weight on what they are called with, and in no other way
_FLOOR = 1e-3  # of the mean square over all inputs, added to that of each: an input next to zero is not blown up to unit size
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Moments:
    """What the readers of a weight were called with.

    An input is what meets one row of the weight: a token's features, or a pixel's patch. Each is scaled to unit mean square: without
    that, the few huge activations of a Transformer own the sums, and error feedback hurts.

    Attributes:
        gram: float32 [groups, n, n], the sum of x^T x over inputs x [1, n]; None if the weight is only looked up.
        cross: float32 [groups, n, n], the sum of y^T x, where y is the same input in the float model, scaled by the same factor.
        lookups: float32 [rows], how often each row of an embedding was looked up; None if the weight is no embedding's.
    """

    gram: Tensor | None = None
    cross: Tensor | None = None
    lookups: Tensor | None = None


def measured(
    reference: nn.Module, student: nn.Module, weights: Sequence[Sequence[Slot]], batches: Iterable[Batch]
) -> Iterator[tuple[list[int], Moments | None]]:
    """Measures stage after stage, a stage being weights that read one input; compress them in `student` before asking for the next.

    Args:
        reference: the float model.
        student: the model whose weights become compressed; its modules have the same names.
        weights: for each weight the places where it stands.
        batches: inputs of the model, without padding, which would count like everything else; gone through once for each stage.

    Yields:
        The stage's indices into `weights`, and its moments. The last stage is what no input reached, with None.

    Raises:
        InputError: there are no batches, or one is no tuple.
    """
    batches = [as_batch(batch) for batch in batches]
    if not batches:
        raise InputError("there are no calibration batches; give tuples with one tensor for each input of the model")
    owner = {_path(slot): index for index, slots in enumerate(weights) for slot in slots if isinstance(slot.module, READERS)}
    calls = _calls(reference, owner, batches[0])
    counts = Counter(owner[call.path] for call in calls)
    for stage in _stages(calls, owner, counts):
        paths = [path for path, index in owner.items() if index == stage[0]]
        total = Moments()
        with parametrize.cached():  # each table is decoded once a stage, not once a batch
            for batch in batches:
                ours, theirs = (_calls(model, paths, batch, counts[stage[0]]) for model in (student, reference))
                for x, y in zip(ours, theirs, strict=True):
                    total = _added(total, x.module, x.value, y.value)
        yield stage, total
    if missed := [index for index in range(len(weights)) if index not in counts]:
        yield missed, None


class _Call(NamedTuple):
    """A module that was called, with which tensor, and a copy of that, since what follows may write into it."""

    path: str
    module: nn.Module
    tensor: Tensor
    value: Tensor


class _Enough(Exception):
    """Ends a forward pass after the last call that is of interest."""


def _calls(model: nn.Module, paths: Iterable[str], batch: Batch, limit: int | None = None) -> list[_Call]:
    """The first `limit` calls of these modules in a forward pass, which goes no further than that."""
    calls: list[_Call] = []

    def watch(path: str) -> RemovableHandle:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls.append(_Call(path, module, inputs[0], inputs[0].detach().clone()))
            if len(calls) == limit:
                raise _Enough

        return model.get_submodule(path).register_forward_pre_hook(see)

    handles = [watch(path) for path in paths]
    try:
        with torch.no_grad():
            model(*batch)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _stages(calls: list[_Call], owner: dict[str, int], counts: Counter[int]) -> list[list[int]]:
    """Weights in the order of their first call; linear layers that read one tensor one after the other, queries and keys, are one stage."""
    first: dict[int, _Call] = {}
    for call in calls:
        first.setdefault(owner[call.path], call)
    stages: list[list[int]] = []
    shared: _Call | None = None  # what the linear layers of the last stage read
    for index, call in first.items():
        linear = isinstance(call.module, nn.Linear) and counts[index] == 1
        if linear and shared and call.tensor is shared.tensor and torch.equal(call.value, shared.value):
            stages[-1].append(index)
        else:
            stages.append([index])
            shared = call if linear else None
    return stages


def _added(total: Moments, module: nn.Module, x: Tensor, y: Tensor) -> Moments:
    """The sums with one more call: of x in the student, and of y in the float model."""
    if isinstance(module, nn.Embedding):
        found = torch.bincount(x.flatten(), minlength=module.num_embeddings).float()
        return replace(total, lookups=found if total.lookups is None else total.lookups + found)
    x, y = inputs_of(module, x), inputs_of(module, y)
    square = x.square().mean(2, keepdim=True)
    factor = (square + _FLOOR * square.mean()).clamp_min(_TINY).rsqrt()
    x, y = factor * x, factor * y
    gram, cross = x.mT @ x, y.mT @ x
    if total.gram is None or total.cross is None:
        return replace(total, gram=gram, cross=cross)
    return replace(total, gram=total.gram + gram, cross=total.cross + cross)


def inputs_of(module: nn.Module, x: Tensor) -> Tensor:
    """float32 [groups, N, n]: what meets the rows of the weight when a module is called with x."""
    if isinstance(module, nn.Linear):
        return x.float().reshape(1, -1, x.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    # The module's own padding, which may be "same" or mirrored, and then patches without any more.
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x.float(), module._reversed_padding_repeated_twice, mode)
    sizes: list[tuple[int, ...]] = [module.kernel_size, module.dilation, (0,) * (x.ndim - 2), module.stride]
    if x.ndim == 3:
        x, sizes = x.unsqueeze(-2), [(neutral, *size) for neutral, size in zip((1, 1, 0, 1), sizes, strict=True)]
    patches = F.unfold(x, *sizes)  # [N, in * kernel, positions]
    return patches.reshape(len(patches), module.groups, -1, patches.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)


def _path(slot: Slot) -> str:
    return slot.name.rpartition(".")[0]
