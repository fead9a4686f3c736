"""Noise of weights that become integers: single weights are rounded to a grid (paper sections 3.1 and 4.2). Rate 1 is plain QAT."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.ao.quantization import HistogramObserver

from qn_deploy.noise.functions import Drawn, Noise, chosen, rowwise
from qn_deploy.recipe import Int4, Int8
from qn_deploy.weights.grid import limit, row_scale


class StoredGrid(Noise):
    """The symmetric grid that compression stores, and runtimes compute with: that of `IntWeight.from_float`.

    The least-squares range takes a search, which `refresh` does; in between, its clipping follows the largest weight of each row.

    Attributes:
        scale, largest: float32 [out] or [1], of a least-squares range at the last `refresh`: its scale, and that of the whole range.
    """

    scale: Tensor
    largest: Tensor

    def __init__(self, weight: Tensor, method: Int8 | Int4, per_channel: bool = True) -> None:
        """Makes room for the scales, if the method needs a search; `refresh` fills it.

        Args:
            weight: float [out, ...].
            method: bits, and the range.
            per_channel: one scale for each output channel, or one for the whole tensor.
        """
        super().__init__()
        self.method, self.per_channel = method, per_channel
        if method.searched:
            for name in ("scale", "largest"):
                self.register_buffer(name, torch.ones(weight.shape[0] if per_channel else 1, device=weight.device))

    def refresh(self, weight: Tensor) -> None:
        """Searches the range of the weight as it is now."""
        if self.method.searched:
            self.scale.copy_(row_scale(self._rows(weight), self.method))
            self.largest.copy_(self._minmax(weight))

    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        """float32 [m, 1]."""
        scale = self._minmax(weight)
        if self.method.searched:
            scale = self.scale * (scale / self.largest)
        scale, top = rowwise(scale, drawn, weight[0].numel()), limit(self.method.bits)
        return (chosen(blocks, drawn) / scale).round_().clamp_(-top, top).mul_(scale)

    def _minmax(self, weight: Tensor) -> Tensor:
        return row_scale(self._rows(weight), type(self.method)("minmax"))

    def _rows(self, weight: Tensor) -> Tensor:
        return (weight.flatten(1) if self.per_channel else weight.reshape(1, -1)).float()


class _AffineGrid(Noise):
    """A grid with scale s and zero point z: w = (round(w/s + z) - z) * s, of 2**bits steps (paper section 3.1, eq. 2)."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        """float32 [m, 1]."""
        scale, zero_point = (rowwise(value, drawn, weight[0].numel()) for value in self.grid(weight))
        return (chosen(blocks, drawn) / scale).round_().add_(zero_point).clamp_(0, 2**self.bits - 1).sub_(zero_point).mul_(scale)

    def grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point, float32 [out] or [1] each."""
        raise NotImplementedError


class MinMaxGrid(_AffineGrid):
    """From the smallest to the largest weight of a channel, or of the tensor, zero included."""

    def __init__(self, bits: int, per_channel: bool) -> None:
        super().__init__(bits)
        self.per_channel = per_channel

    def grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Of the weight as it is now."""
        rows = weight.flatten(1) if self.per_channel else weight.reshape(1, -1)
        low, high = rows.amin(1).float().clamp(max=0.0), rows.amax(1).float().clamp(min=0.0)  # aminmax takes seven times as long
        scale = ((high - low) / (2**self.bits - 1)).clamp(min=torch.finfo(torch.float32).eps)  # the floor of torch's observers
        return scale, (-low / scale).round()


class HistogramGrid(_AffineGrid):
    """The range of the whole tensor that loses the least squared error, by torch's running histogram of the weight at each `refresh`.

    Attributes:
        observer: the histogram.
        scale, zero_point: float32 [1], as of the last `refresh`.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__(bits)
        self.observer = HistogramObserver(quant_min=0, quant_max=2**bits - 1, dtype=torch.quint8).to(weight.device)
        for name in ("scale", "zero_point"):
            self.register_buffer(name, torch.ones(1, device=weight.device))

    def refresh(self, weight: Tensor) -> None:
        """Adds the weight as it is now to the histogram."""
        self.observer(weight.float())
        scale, zero_point = self.observer.calculate_qparams()
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def grid(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """As of the last `refresh`."""
        return self.scale, self.zero_point
