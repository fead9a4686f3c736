"""An LSTM with a projection (`proj_size`) as its steps, which are plain layers: no runtime has such an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_LSTM = torch.ops.aten.lstm.input


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What `ExportedProgram.run_decompositions` takes to write out these LSTMs and no others; each sequence has one length in a graph."""
    (steps_of,) = torch._decomp.get_decompositions([_LSTM]).values()

    def projected(x: Tensor, state: list[Tensor], weights: list[Tensor], *options: Any) -> Any:
        hidden, cell = state
        return NotImplemented if hidden.shape[-1] == cell.shape[-1] else steps_of(x, state, weights, *options)

    return {_LSTM: projected}
