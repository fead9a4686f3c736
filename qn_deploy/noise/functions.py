"""Noise functions: a weight and a rate go in, a distorted weight comes out (paper section 4.2). No state, no modules.

A noise distorts a random subset of the weight and leaves the rest bit for bit as it is. All of them work on the weight that compression
will see, rows of `weight.reshape(out, -1)` cut in blocks. Random numbers come from torch's default generator of the weight's
device, so that `torch.manual_seed` makes a training run reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qn_deploy.compress.ranges import row_scale
from qn_deploy.compress.weights import INT8_MAX
from qn_deploy.recipe import Int8

Noise = Callable[[Tensor, float], Tensor]
"""(weight, rate p) -> the distorted weight, of the same shape and dtype. It carries no gradient of its own."""


def zero_blocks(weight: Tensor, p: float, block_size: int) -> Tensor:
    """Proxy noise: whole blocks of consecutive weights become zero (paper section 4.2).

    Args:
        weight: float [out, ...], a row being everything that one output channel reads.
        p: the rate at which a block is drawn, each independently of the others.
        block_size: d, a divisor of the row's length.

    Returns:
        The weight's shape and dtype.
    """
    blocks = weight.reshape(weight.shape[0], -1, block_size)  # [out, B, d]
    drawn = _draw(blocks[..., :1], p)  # [out, B, 1]
    return blocks.masked_fill(drawn, 0.0).reshape(weight.shape)


def int8(weight: Tensor, p: float, per_channel: bool = True) -> Tensor:
    """Scalar noise: single weights are rounded to the symmetric int8 grid (paper sections 3.1 and 4.2). Rate 1 is plain QAT.

    The grid is the one that `IntWeight.from_float` stores: the largest magnitude of a channel, or of the tensor, is at 127.

    Args:
        weight: float [out, ...].
        p: the rate at which a weight is drawn, each independently of the others.
        per_channel: one scale for each output channel, or one for the whole tensor.

    Returns:
        The weight's shape and dtype.
    """
    rows = (weight.flatten(1) if per_channel else weight.reshape(1, -1)).float()
    scale = row_scale(rows, Int8())[:, None]
    rounded = (rows / scale).round_().clamp_(-INT8_MAX, INT8_MAX).mul_(scale)
    return torch.where(_draw(weight, p), rounded.reshape(weight.shape).to(weight.dtype), weight)


def straight_through(weight: Tensor, noised: Tensor) -> Tensor:
    """The noised values, with the weight's gradient (paper section 4.1, eq. 6).

    The gradient reaches every weight as if the noise had not been there, the distorted ones too: a block that was zeroed is still
    told which way to go. (Masking the zeroed blocks' gradient, as dropout would, is another method than the paper's.)
    """
    out: Tensor = _StraightThrough.apply(weight, noised)
    return out


class _StraightThrough(torch.autograd.Function):
    # A function of its own and not `weight + (noised - weight).detach()`, which rounds and holds two more copies of the weight.

    @staticmethod
    def forward(weight: Tensor, noised: Tensor) -> Tensor:
        return noised.view_as(noised)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass  # nothing is saved: the gradient passes as it is

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _draw(like: Tensor, p: float) -> Tensor:
    """Bool of `like`'s shape, True at rate p."""
    return torch.empty(like.shape, dtype=torch.bool, device=like.device).bernoulli_(p)
