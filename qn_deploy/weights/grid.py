"""The scale of a symmetric integer grid: from a row's largest weight, or by the least squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from qn_deploy.recipe import Int4, Int8

# A row this small counts as zero. Dead channels decay to 1e-20; a scale that small would push the int32 bias of
# a quantized layer, bias / (input scale * weight scale), out of range.
_DEAD_ROW = 1e-6  # of the largest row
_DEAD = 1e-36  # of any row: a scale below it would be no normal float32, which runtimes refuse or flush
_CLIPPINGS = 48  # candidates between a quarter of the largest magnitude and all of it


def limit(bits: int) -> int:
    """The largest value of a symmetric grid: 127 of 8 bits, 7 of 4."""
    return (1 << (bits - 1)) - 1


def row_scale(rows: Tensor, method: Int8 | Int4) -> Tensor:
    """The scale of each row's grid, by the method's range (paper section 3.1, eq. 2, with zero point 0 as runtimes ask of weights).

    A dead row gets the largest row's scale, and so decodes to zeros; a tensor of zeros gets that of a row of ones.

    Args:
        rows: float32 [n, m].
        method: Int8 or Int4; its range decides, "minmax" of Int8 and "least_squares" of Int4 if it is None.

    Returns:
        float32 [n], positive.
    """
    top = limit(method.bits)
    largest = rows.abs().amax(1)
    alive, most = live_rows(largest), largest.max()
    minmax = torch.where(alive, largest, torch.where(alive.any(), most, 1.0)) / top
    return _least_squares(rows, minmax, top) if method.searched else minmax


def live_rows(sizes: Tensor) -> Tensor:
    """False, in bool [n], for a row of weights that counts as zero, by its size [n], a largest magnitude or a root mean square."""
    return sizes > (_DEAD_ROW * sizes.max()).clamp_min(_DEAD)


def _least_squares(rows: Tensor, scale: Tensor, top: int) -> Tensor:
    best, least = scale, torch.full_like(scale, torch.inf)
    for clipping in torch.linspace(1.0, 0.25, _CLIPPINGS).tolist():
        candidate = scale * clipping
        rounded = (rows / candidate[:, None]).round_().clamp_(-top, top).mul_(candidate[:, None])
        error = rounded.sub_(rows).square_().sum(1)
        best, least = torch.where(error < least, candidate, best), torch.minimum(error, least)
    return best
