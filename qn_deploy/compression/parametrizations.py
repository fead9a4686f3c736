"""Parametrizations that decode a compressed weight in every forward pass, and the gradients behind them.

With int8 in the loop, the weight that the forward pass sees equals the dequantized table or int8 weight bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.errors import CompressionError
from qn_deploy.weights.compressed import INT8_MAX, IntWeight, PQWeight, to_int8
from qn_deploy.weights.grid import limit


class TableWeight(nn.Module):
    """Parametrization of a weight by tables: (centroids [G, K, d], scale [out] or [1], residual centroids if there are any) -> weight.

    The gradient of a centroid is the mean of the gradients of its blocks (paper section 3.2), weighted by the scale of their rows: the
    move of the centroid that brings the weight closest to where its own gradient step would. The scale's gradient is the same
    projection. So one learning rate means the same for tables and for plain weights.

    Attributes:
        codes, residual_codes: uint8 or uint16 [out, B].
        int8_in_loop: the forward pass sees the centroids rounded to int8, with a straight-through gradient.
    """

    def __init__(self, weight: PQWeight, int8_in_loop: bool = True) -> None:
        super().__init__()
        for name, table in zip(("codes", "residual_codes"), weight.tables, strict=False):
            self.register_buffer(name, table.codes.clone())  # they may learn
            self.register_buffer(f"_{name}_offsets", table.offsets, persistent=False)
        self.shape = weight.shape
        self.int8_in_loop = int8_in_loop
        first, *more = (table.centroids.float() for table in weight.tables)
        self._start: tuple[Tensor, ...] | None = (first, weight.scale.clone(), *more)

    def forward(self, centroids: Tensor, scale: Tensor, *residual: Tensor) -> Tensor:
        """The float32 weight of shape `shape`."""
        tables, rows, begin = [], [], 0
        for (codes, offsets), book in zip(self.indexed(), (centroids, *residual), strict=True):
            tables.append(book.flatten(0, 1))
            rows.append(codes.int() + offsets + begin)
            begin += len(tables[-1])
        decoded: Tensor = _Decode.apply(torch.cat(tables), scale, torch.stack(rows), self.int8_in_loop)
        return decoded.reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The centroids and scale to start from; called once, when torch registers the parametrization.

        Raises:
            CompressionError: later, when somebody assigns to the weight.
        """
        if self._start is None:
            raise CompressionError("this weight is held as a table and can't be assigned to")
        start, self._start = self._start, None
        return tuple(value.to(weight.device) for value in start)

    def compressed(self, centroids: Tensor, scale: Tensor, *residual: Tensor) -> PQWeight:
        """The table as a file holds it, on the CPU."""
        books = [book.detach() for book in (centroids, *residual)]
        if not all(bool(torch.isfinite(book).all()) for book in books):
            raise CompressionError("a centroid is NaN or infinite; fine-tune with a lower learning rate")
        scale = scale.detach().clone()
        if not self.int8_in_loop:
            books, scale = on_grid(books, scale)
        table = None
        for (codes, _), book in reversed([*zip(self.indexed(), books, strict=True)]):
            table = PQWeight(codes.cpu().clone(), to_int8(book).to(torch.int8).cpu(), scale.cpu(), self.shape, residual=table)
        assert table is not None
        return table

    def indexed(self) -> list[tuple[Tensor, Tensor]]:
        """(codes [out, B], [B] where the codebook of each column begins) of the table, and of the residual one."""
        buffers = dict(self.named_buffers())
        return [(buffers[name], buffers[f"_{name}_offsets"]) for name in ("codes", "residual_codes") if name in buffers]


class IntegerWeight(nn.Module):
    """Parametrization by int8 or int4: latent float weight -> the weight rounded with a fixed scale, gradient straight through.

    Attributes:
        scale: float32 [out] or [1], fixed when attached.
        bits: 8 or 4.
    """

    scale: Tensor

    def __init__(self, weight: IntWeight) -> None:
        super().__init__()
        self.register_buffer("scale", weight.scale)
        self.bits = weight.bits

    def forward(self, latent: Tensor) -> Tensor:
        """The float32 weight, of the latent weight's shape."""
        rounded: Tensor = _Round.apply(latent, self._column(latent), limit(self.bits))
        return rounded

    def compressed(self, latent: Tensor) -> IntWeight:
        """The integer weight as a file holds it, on the CPU."""
        if not torch.isfinite(latent).all():
            raise CompressionError("a weight is NaN or infinite; fine-tune with a lower learning rate")
        values = to_int8(latent.detach() / self._column(latent), limit(self.bits)).to(torch.int8)
        return IntWeight(values.cpu(), self.scale.cpu(), self.bits)

    def _column(self, latent: Tensor) -> Tensor:
        return self.scale.reshape(-1, *[1] * (latent.ndim - 1))


class _Decode(torch.autograd.Function):
    """scale[o] * sum over r of table[rows[r, o, i]]; backward projects the weight's gradient on each parameter, by least squares."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, scale: Tensor, rows: Tensor, int8_in_loop: bool) -> Tensor:
        # In place, since the weight of an embedding is most of a model, and fresh memory costs more than the multiplication.
        weight = _values(table, rows, int8_in_loop).flatten(1).mul_(scale[:, None])
        ctx.save_for_backward(scale, rows, weight)
        ctx.table_shape = table.shape
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        scale, rows, weight = ctx.saved_tensors  # [out] or [1], [R, out, B], [out, B*d]
        size, d = ctx.table_shape
        rowwise = scale.expand(len(weight))[:, None]
        length = (torch.linalg.vector_norm(weight, dim=1) / rowwise[:, 0]).square()
        square = rowwise.square().expand(rows.shape[1:]).flatten()
        total = grad.new_zeros(size)
        for chosen in rows:
            total.index_add_(0, chosen.flatten().long(), square)  # int32 indices take ten times as long

        # A batch reads few rows of an embedding; those without a gradient add nothing to the sums below.
        read = torch.linalg.vector_norm(grad, dim=1) != 0
        if not read.all():
            grad, weight, rows, rowwise = grad[read], weight[read], rows[:, read], rowwise[read]

        # centroid: sum of s*g over sum of s^2, both over its blocks; the floor keeps blocks of vanishing rows from exploding
        pull = (rowwise * grad).reshape(-1, d)
        moved = grad.new_zeros(size, d)
        for chosen in rows:
            moved.index_add_(0, chosen.flatten().long(), pull)
        floor = (1e-6 * square.max()).clamp_min(torch.finfo(torch.float32).tiny)
        centroid_grad = moved / total.clamp_min(floor)[:, None]

        # scale: sum of c*g over sum of c^2, both over its rows; in int8 steps, so 1 is next to nothing
        along = torch.zeros_like(length)
        along[read] = torch.linalg.vecdot(weight, grad) / rowwise[:, 0]
        if scale.numel() == 1:
            along, length = along.sum()[None], length.sum()[None]
        return centroid_grad, along / length.clamp_min(1.0), None, None


def _values(table: Tensor, rows: Tensor, int8_in_loop: bool) -> Tensor:
    """float32 [out, B, d]: the blocks that rows [R, out, B] of the table add up to, saturating as PQWeight does."""
    if int8_in_loop:
        table = to_int8(table)
    first, *more = (F.embedding(chosen, table) for chosen in rows)
    for second in more:
        first = first + second
        if int8_in_loop:
            first = first.clamp(-INT8_MAX, INT8_MAX)
    return first


class _Round(torch.autograd.Function):
    """scale * round(latent / scale), written so that it equals the dequantized integer weight bit for bit; gradient straight through."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, top: int) -> Tensor:
        return scale * to_int8(latent / scale, top)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad, None, None


def on_grid(books: list[Tensor], scale: Tensor) -> tuple[list[Tensor], Tensor]:
    """The same tables with their centroids in reach of int8: (centroids of each, scale)."""
    # The grid only ever grows, so that centroids that fine-tuning left alone keep their exact values.
    step = torch.stack([book.abs().max() for book in books]).max().div(INT8_MAX).clamp_min(1.0)
    return [book / step for book in books], scale * step
