"""Noise of weights that become tables: whole blocks take another value (paper sections 3.2 and 4.2, ablation in table 5)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from qn_deploy.noise.functions import Drawn, Noise, chosen, draw, rowwise
from qn_deploy.recipe import Table
from qn_deploy.weights.compressed import INT8_MAX, book_offsets, codes_dtype
from qn_deploy.weights.kmeans import nearest
from qn_deploy.weights.tables import groups, table_from_weight

Unit = Literal["subvectors", "clusters"]
"""What is drawn: single blocks, or clusters, of which all blocks are then distorted."""


class ZeroNoise(Noise):
    """The paper's proxy: drawn blocks become zero."""

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size

    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        """A zero."""
        return blocks.new_zeros(())


class MeanNoise(ZeroNoise):
    """Drawn blocks become the mean of all blocks of the weight, as if the codebook had one centroid."""

    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        """float32 [d]."""
        return weight.reshape(-1, self.block_size).mean(0, dtype=torch.float32)


class ExactNoise(Noise):
    """Drawn blocks become what a table would make of them: the nearest centroid, times the scale of their row (phi_PQ in the paper).

    The table, with its local codebooks, int8 centroids and residual, is the one that compression would have made of the weight at
    the last `refresh`; the nearest centroids are those of the weight as it is now.

    Attributes:
        centroids, residual: int8 [G, K, d]; the residual has K = 0 if there is none.
        scale: float32 [out] or [1].
    """

    centroids: Tensor
    residual: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, method: Table, per_channel: bool = True, seed: int = 0) -> None:
        """Makes room for the table; `refresh` fills it.

        Args:
            weight: float [out, ...]; the block size divides a row.
            method: block size, numbers of centroids and codebooks.
            per_channel: one scale for each row, or one for the whole weight.
            seed: of the k-means.
        """
        super().__init__()
        self.method, self.per_channel, self.seed = method, per_channel, seed
        self.block_size = method.block_size
        out, columns = weight.shape[0], weight[0].numel() // method.block_size
        books = method.books(out, columns)
        most = out * -(-columns // books)  # no codebook can have more centroids than blocks
        for name, size in (("centroids", method.centroids), ("residual", method.residual)):
            self.register_buffer(name, torch.zeros(books, min(size, most), method.block_size, dtype=torch.int8, device=weight.device))
        self.register_buffer("scale", torch.ones(out if per_channel else 1, device=weight.device))

    def refresh(self, weight: Tensor) -> None:
        """Makes the table of the weight as it is now."""
        table = table_from_weight(weight, self.method, self.seed, self.per_channel)
        self.scale.copy_(table.scale)
        for buffer, part in zip((self.centroids, self.residual), table.tables, strict=False):
            for book, columns in enumerate(groups(part.codes.shape[1], part.centroids.shape[0])):
                count = int(part.codes[:, columns].int().max()) + 1  # centroids beyond it only pad this codebook
                buffer[book, :count] = part.centroids[book, :count]
                buffer[book, count:] = part.centroids[book, count - 1]

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # faiss, and selections whose lengths depend on the draw
    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        """float32 [m, d]."""
        columns, books = weight[0].numel() // self.block_size, len(self.centroids)
        scale = rowwise(self.scale, drawn, columns)
        blocks = chosen(blocks, drawn) / scale
        if books == 1:
            return self._decoded(blocks, 0).mul_(scale)
        positions = torch.arange(len(blocks), device=blocks.device) if isinstance(drawn.positions, slice) else drawn.positions
        book_of = positions % columns * books // columns
        decoded = torch.empty_like(blocks)
        for book in range(books):
            of_book = (book_of == book).nonzero()[:, 0]
            if len(of_book):
                decoded[of_book] = self._decoded(blocks[of_book], book)
        return decoded.mul_(scale)

    def _decoded(self, blocks: Tensor, book: int) -> Tensor:
        first = _nearest(blocks, self.centroids[book])
        if not self.method.residual:
            return first
        return (first + _nearest(blocks - first, self.residual[book])).clamp_(-INT8_MAX, INT8_MAX)


class Clusters(Noise):
    """Another block noise, but what is drawn are clusters of the weight's blocks, as of the last `refresh`.

    Attributes:
        noise: decides what the blocks of a drawn cluster become.
        codes: uint8 or uint16 [out, B], the cluster of each block, counted within its codebook.
    """

    codes: Tensor

    def __init__(self, weight: Tensor, noise: Noise, method: Table, per_channel: bool = True, seed: int = 0) -> None:
        super().__init__()
        self.noise, self.method, self.per_channel, self.seed = noise, method, per_channel, seed
        self.block_size = method.block_size
        out, columns = weight.shape[0], weight[0].numel() // method.block_size
        self.books = method.books(out, columns)
        self.register_buffer("codes", torch.zeros(out, columns, dtype=codes_dtype(method.centroids), device=weight.device))

    def refresh(self, weight: Tensor) -> None:
        """Clusters the blocks of the weight as it is now."""
        self.noise.refresh(weight)
        self.codes.copy_(table_from_weight(weight, self.method, self.seed, self.per_channel).codes)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the number of blocks depends on the draw
    def draw(self, weight: Tensor, p: float) -> Drawn:
        """Draws clusters at rate p, each independently of the others; gives all their blocks."""
        size, columns = self.method.centroids, self.codes.shape[1]
        clusters = draw(self.books * size, p, weight.device)
        hit = torch.zeros(self.books * size, dtype=torch.bool, device=weight.device)
        hit[clusters.positions] = True
        if clusters.last is not None:
            hit[-1] = clusters.last
        offsets = book_offsets(columns, self.books, size, weight.device)
        return Drawn(hit[self.codes.long() + offsets].flatten().nonzero()[:, 0])

    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        """As the other noise has it."""
        return self.noise.values(weight, blocks, drawn)


def _nearest(blocks: Tensor, centroids: Tensor) -> Tensor:
    centroids = centroids.float()
    return centroids.index_select(0, nearest(blocks, centroids, backend="torch"))  # of so few blocks faiss takes ten times as long
