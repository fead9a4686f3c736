"""k-means over the blocks of a random matrix: error and time, plain and weighted, beside faiss's own k-means."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import faiss
import paired
import torch
from rows import Row, at_most, chosen, finish, json_option, seed_option
from torch import Tensor

from qn_deploy.weights.kmeans import kmeans, nearest

TITLE = "k-means"
FAISS_ITERATIONS = 15
ERROR, TIME, WEIGHTED_TIME = 0.3225, 1.5, 4.0  # of the default sizes; the times in units of faiss's
NOISE = 1e-3  # in which weights of 1 may differ from none


@click.command(help=__doc__)
@click.option("--rows", default=1024, show_default=True, help="Of the matrix.")
@click.option("--columns", default=4096, show_default=True, help="Of the matrix.")
@click.option("--block", default=8, show_default=True, help="Weights of a block.")
@click.option("--centroids", default=256, show_default=True, help="K.")
@click.option("--samples", default=8, show_default=True, help="Of each timing.")
@click.option("--threads", default=1, show_default=True, help="Of ours and of faiss.")
@seed_option
@json_option
def main(rows: int, columns: int, block: int, centroids: int, samples: int, threads: int, seed: int, json_file: Path | None) -> None:
    options = chosen()
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(rows, columns, generator=generator).reshape(-1, block)
    weights = torch.rand(blocks.shape, generator=generator).square()

    def theirs() -> Tensor:
        clustering = faiss.Kmeans(
            block, centroids, niter=FAISS_ITERATIONS, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(blocks)
        )
        clustering.train(blocks.numpy())
        return torch.from_numpy(clustering.centroids)

    def ours(weights: Tensor | None = None) -> Tensor:
        found, codes = kmeans(blocks, centroids, weights=weights, seed=seed)
        return found[codes]

    def error(decoded: Tensor, weights: Tensor | float = 1.0) -> float:
        return float((weights * (blocks - decoded).square()).sum() / (weights * blocks.square()).sum())

    plain, ones, weighted, table = ours(), ours(torch.ones_like(blocks)), ours(weights), theirs()
    measured = [
        at_most("error", error(plain), "of the squares", ERROR),
        Row("error, faiss", error(table[nearest(blocks, table)]), "of the squares"),
        at_most("error, weights of 1 apart from none", abs(error(ones) / error(plain) - 1), "of the error", NOISE),
        at_most("weighted error", error(weighted, weights), "of the squares", error(plain, weights)),
        *_timing("time", paired.paired(ours, theirs, samples), TIME),
        *_timing("weighted time", paired.paired(lambda: ours(weights), theirs, samples), WEIGHTED_TIME),
    ]
    sys.exit(finish(TITLE, measured, options | {"faiss": faiss.__version__, "faiss_iterations": FAISS_ITERATIONS}, json_file))


def _timing(name: str, pair: paired.Pair, limit: float) -> list[Row]:
    ratio, *medians = paired.rows(name, "ours", "faiss", pair)
    return [at_most(ratio.name, ratio.value, ratio.unit, limit), *medians]


if __name__ == "__main__":
    main()
