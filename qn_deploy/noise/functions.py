"""The draw behind all weight noise, and what it does to a weight (paper section 4.2).

A noise cuts the rows of `weight.reshape(out, -1)`, which compression will see, into blocks, draws some of them at random and puts
other values in their place; the rest stays bit for bit as it is. Random numbers come from torch's default generator of the weight's
device, so that `torch.manual_seed` makes a training run reproducible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Drawn(NamedTuple):
    """Which of n blocks are drawn.

    Attributes:
        positions: int64, rising; or slice(None) for all blocks.
        last: None, or a bool [] where the draws past the end are held at the last block: whether that one is really drawn.
    """

    positions: Tensor | slice
    last: Tensor | None = None


class Change(NamedTuple):
    """What a noise does to a weight.

    Attributes:
        block_size: d.
        drawn: the blocks.
        values: what they become, [m, d] or a shape that broadcasts to it, of the weight's dtype.
    """

    block_size: int
    drawn: Drawn
    values: Tensor


class Noise(nn.Module):
    """A noise on one weight: which of its blocks are drawn, and what they become.

    Attributes:
        block_size: d, the weights that are drawn together.
    """

    block_size: int = 1

    def draw(self, weight: Tensor, p: float) -> Drawn:
        """Draws blocks at rate p, each independently of the others."""
        return draw(weight.numel() // self.block_size, p, weight.device)

    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        """What the drawn blocks of a weight become.

        Args:
            weight: float [out, ...], as it is before this noise.
            blocks: [n, d], the same weight in blocks.
            drawn: which of them; `chosen` gives them.

        Returns:
            [m, d] or a shape that broadcasts to it; any float dtype.
        """
        raise NotImplementedError

    def refresh(self, weight: Tensor) -> None:
        """Learns what the noise has to know of the clean weight beforehand: codebooks, ranges."""

    def forward(self, weight: Tensor, p: float) -> Tensor:
        """The distorted weight."""
        noised = weight.clone()
        distort(noised.detach(), (self,), p)
        return noised

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Noise:
        # Follows the model to another device, but what it learnt keeps its dtype: a grid's scale must not become bfloat16.
        super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[no-untyped-call]
        return self


def draw(n: int, p: float, device: torch.device) -> Drawn:
    """Draws from n blocks, each at rate p and independently of the others, at a cost that goes with p*n.

    It draws the gaps between them, which are geometric, and so needs no random number for a block that is left alone.
    """
    if p == 1:
        return Drawn(slice(None))
    expected = n * p
    # The first: rarer than once in a million counts as never, float32 has no digits left for such rates. The second: the chance that so
    # many gaps don't pass the end is below 1e-14.
    enough = 0 if expected < 1e-6 else int(expected + 8 * math.sqrt(expected * (1 - p))) + 16
    uniform = torch.empty(enough, device=device).uniform_((1 - p) * 2**-25, 1 - p)  # below 1 - p, so that a gap is 1 or more
    positions = uniform.log_().div_(math.log1p(-p) or -1.0).cumsum(0, dtype=torch.int64).sub_(1)
    if device.type == "cpu" and not torch.compiler.is_compiling():
        return Drawn(positions[: int(torch.searchsorted(positions, n))])
    # A length that depends on the numbers drawn would have to wait for them.
    return Drawn(positions.clamp(max=n - 1), (positions == n - 1).any())


def distort(weight: Tensor, noises: Sequence[Noise], p: float) -> list[Change]:
    """Applies noises in their order, each with a draw of its own, to a weight.

    Args:
        weight: float [out, ...], contiguous; changed in place.
        noises: each works on what those before it made of the weight (paper section 3.3: int8 over product quantization).
        p: the rate of each.

    Returns:
        The changes, which `redo` repeats.
    """
    changes = []
    for noise in noises:
        blocks = weight.view(-1, noise.block_size)
        drawn = noise.draw(weight, p)
        changes.append(Change(noise.block_size, drawn, noise.values(weight, blocks, drawn).to(weight.dtype)))
        _change(blocks, changes[-1])
    return changes


def redo(weight: Tensor, changes: Sequence[Change]) -> Tensor:
    """A copy of the weight, distorted by changes that `distort` made of it."""
    noised = weight.clone(memory_format=torch.contiguous_format)
    for change in changes:
        _change(noised.view(-1, change.block_size), change)
    return noised


def chosen(blocks: Tensor, drawn: Drawn) -> Tensor:
    """float32 [m, d], the drawn ones of blocks [n, d]."""
    if isinstance(drawn.positions, slice):
        return blocks.float()
    # Several times as fast as blocks[positions], if single weights are no rows of one number.
    return blocks.squeeze(1).index_select(0, drawn.positions).view(-1, blocks.shape[1]).float()


def rowwise(per_row: Tensor, drawn: Drawn, columns: int) -> Tensor:
    """[m, 1] or [1, 1]: for each drawn block the value of its row, from one value for each row of `columns` blocks or one for all rows."""
    if per_row.numel() == 1:
        return per_row.reshape(1, 1)
    if isinstance(drawn.positions, slice):
        return per_row.repeat_interleave(columns)[:, None]
    return per_row.index_select(0, drawn.positions // columns)[:, None]


def _change(blocks: Tensor, change: Change) -> None:
    positions, last = change.drawn
    if last is None:
        _put(blocks, positions, change.values)
        return
    kept = blocks[-1].clone()
    _put(blocks, positions, change.values)
    blocks[-1] = torch.where(last, blocks[-1], kept)


def _put(blocks: Tensor, positions: Tensor | slice, values: Tensor) -> None:
    if isinstance(positions, Tensor) and blocks.shape[1] == 1:  # four times as fast as the assignment, which serves all cases
        blocks.squeeze(1).scatter_(0, positions, values.expand(len(positions), 1).squeeze(1))
    else:
        blocks[positions] = values
