"""Parametrizations that decode a compressed weight in every forward pass, and the gradients behind them.

With int8 in the loop, the weight that the forward pass sees equals the dequantized table or int8 weight bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy.compress.weights import INT8_MAX, IntWeight, PQWeight
from qn_deploy.errors import CompressionError


class TableWeight(nn.Module):
    """Parametrization of a weight by a table: (centroids [G, K, d], scale [out] or [1]) -> weight.

    The gradient of a centroid is the mean of the gradients of its blocks (paper section 3.2), weighted by the scale of their rows: the
    move of the centroid that brings the weight closest to where its own gradient step would. The scale's gradient is the same
    projection. So one learning rate means the same for tables and for plain weights.

    Attributes:
        codes: uint8 [out, B].
        offsets: int64 [B], where the codebook of each block column begins in centroids.reshape(G*K, d).
        int8_in_loop: the forward pass sees the centroids rounded to int8, with a straight-through gradient.
    """

    codes: Tensor
    offsets: Tensor

    def __init__(self, weight: PQWeight, int8_in_loop: bool = True) -> None:
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("offsets", (weight.rows[0] - weight.codes[0]).long(), persistent=False)
        self.shape = weight.shape
        self.int8_in_loop = int8_in_loop
        self._start: tuple[Tensor, Tensor] | None = (weight.centroids.float(), weight.scale.clone())

    def forward(self, centroids: Tensor, scale: Tensor) -> Tensor:
        """The float32 weight of shape `shape`."""
        decoded: Tensor = _Decode.apply(centroids, scale, self.codes.long() + self.offsets, self.int8_in_loop)
        return decoded.reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The centroids and scale to start from; called once, when torch registers the parametrization.

        Raises:
            CompressionError: later, when somebody assigns to `module.weight`.
        """
        if self._start is None:
            raise CompressionError("this weight is held as a table and can't be assigned to; call bake(model) first")
        start, self._start = self._start, None
        return start[0].to(weight.device), start[1].to(weight.device)

    def compressed(self, centroids: Tensor, scale: Tensor) -> PQWeight:
        """The table as a file holds it, on the CPU."""
        if not torch.isfinite(centroids).all():
            raise CompressionError("a centroid is NaN or infinite; fine-tune with a lower learning rate")
        if not self.int8_in_loop:
            centroids, scale = on_grid(centroids, scale)
        return PQWeight(
            codes=self.codes.cpu(),
            centroids=to_int8(centroids.detach()).to(torch.int8).cpu(),
            scale=scale.detach().clone().cpu(),
            shape=self.shape,
        )


class Int8Weight(nn.Module):
    """Parametrization of a weight by int8 values: latent float weight -> the weight rounded with a fixed scale, gradient straight through.

    Attributes:
        scale: float32 [out] or [1], fixed when attached.
    """

    scale: Tensor

    def __init__(self, weight: IntWeight) -> None:
        super().__init__()
        self.register_buffer("scale", weight.scale)

    def forward(self, latent: Tensor) -> Tensor:
        """The float32 weight, of the latent weight's shape."""
        rounded: Tensor = _Round.apply(latent, self._column(latent))
        return rounded

    def compressed(self, latent: Tensor) -> IntWeight:
        """The int8 weight as a file holds it, on the CPU."""
        if not torch.isfinite(latent).all():
            raise CompressionError("a weight is NaN or infinite; fine-tune with a lower learning rate")
        return IntWeight(to_int8(latent.detach() / self._column(latent)).to(torch.int8).cpu(), self.scale.cpu())

    def _column(self, latent: Tensor) -> Tensor:
        return self.scale.reshape(-1, *[1] * (latent.ndim - 1))


class _Decode(torch.autograd.Function):
    """scale[o] * centroids[rows[o, i]]; backward is the least-squares projection of the weight's gradient on centroids and scale."""

    @staticmethod
    def forward(ctx: Any, centroids: Tensor, scale: Tensor, rows: Tensor, int8_in_loop: bool) -> Tensor:
        table = (to_int8(centroids) if int8_in_loop else centroids).flatten(0, 1)  # [G*K, d]
        ctx.save_for_backward(table, scale, rows)
        ctx.shape = centroids.shape
        return scale[:, None] * table[rows].flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        table, scale, rows = ctx.saved_tensors
        blocks = table[rows]  # [out, B, d]
        grad = grad.reshape(blocks.shape)
        rowwise = scale.expand(rows.shape[0])[:, None]  # [out, 1]

        # centroid: sum of s*g over sum of s^2, both over its blocks; the floor keeps blocks of vanishing rows from exploding
        square = rowwise.square().expand(rows.shape)
        moved = torch.zeros_like(table).index_add_(0, rows.flatten(), (rowwise[..., None] * grad).flatten(0, 1))
        total = table.new_zeros(table.shape[0]).index_add_(0, rows.flatten(), square.flatten())
        floor = (1e-6 * square.max()).clamp_min(torch.finfo(torch.float32).tiny)
        centroid_grad = moved / total.clamp_min(floor)[:, None]

        # scale: sum of c*g over sum of c^2, both over its rows; in int8 steps, so 1 is next to nothing
        along, length = (blocks * grad).sum((1, 2)), blocks.square().sum((1, 2))
        if scale.numel() == 1:
            along, length = along.sum()[None], length.sum()[None]
        return centroid_grad.reshape(ctx.shape), along / length.clamp_min(1.0), None, None


class _Round(torch.autograd.Function):
    """scale * round(latent / scale), written so that it equals the dequantized int8 weight bit for bit; gradient straight through."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor) -> Tensor:
        return scale * to_int8(latent / scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def to_int8(values: Tensor) -> Tensor:
    """Rounded to whole numbers in [-127, 127], still float."""
    return values.round().clamp(-INT8_MAX, INT8_MAX)


def on_grid(centroids: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The same table with its centroids in reach of int8: (centroids, scale)."""
    # The grid only ever grows, so that centroids that fine-tuning left alone keep their exact values.
    step = (centroids.detach().abs().max() / INT8_MAX).clamp_min(1.0)
    return centroids / step, scale * step
