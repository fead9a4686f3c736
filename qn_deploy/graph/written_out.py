"""Operators that no runtime has, or not every one, written out in plain ones when a program is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_LSTM = _aten.lstm.input


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `ExportedProgram.run_decompositions` takes to write out these and no others.

    An LSTM with a projection (`proj_size`) becomes its steps, each sequence having one length in a graph; a BatchNorm without running
    statistics the mean and variance of the batch.
    """
    (steps_of,) = torch._decomp.get_decompositions([_LSTM]).values()

    def projected(x: Tensor, state: list[Tensor], weights: list[Tensor], *options: Any) -> Any:
        hidden, cell = state
        return NotImplemented if hidden.shape[-1] == cell.shape[-1] else steps_of(x, state, weights, *options)

    return {_LSTM: projected, _aten._native_batch_norm_legit.no_stats: _normalized}


def _normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch less its mean, over its deviation, and both: of each channel (dimension 1), over all samples and places."""
    others = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    mean = x.mean(others, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt((centred * centred).mean(others, keepdim=True) + epsilon)
    result = centred * (inverse if weight is None else inverse * weight.reshape(shape))
    return result if bias is None else result + bias.reshape(shape), mean.flatten(), inverse.flatten()
