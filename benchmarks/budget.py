"""A network within a budget: `plan` beside the uniform recipe whose file has the same bytes, and a drop on samples that plan never saw."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from budget_networks import NETWORKS, Loaded, Measured, Network
from rows import Row, at_least, at_most, chosen, clock, finish, json_option, seed_option, skip

from qn_deploy.compression import CompressConfig, PlanConfig, compress
from qn_deploy.compression.metric import standard_error
from qn_deploy.compression.plan import Planner, file_bytes
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.program import Program
from qn_deploy.recipe import Recipe, Rule

ROOT = Path(__file__).resolve().parent.parent
SMALLEST, GAIN = 3, 2.0  # at so many of the smallest sizes the mean gain in points
HELD_OUT = 0.3  # points that may be lost beyond a drop on samples that plan never saw


@click.command(help=__doc__)
@click.option("--network", "name", type=click.Choice([*NETWORKS]), default="resnet20", show_default=True)
@click.option(
    "--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with the networks' data, as in README."
)
@click.option("--tests", "count", default=10_000, show_default=True, help="Test samples, at most.")
@click.option("--sizes", type=click.IntRange(0, 5), default=5, show_default=True, help="How many of the five sizes, the smallest.")
@click.option(
    "--max-drop",
    "drops",
    type=float,
    multiple=True,
    help="Also plan for this drop in points by half of the samples; the others judge.",
)
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(name: str, data: Path, count: int, sizes: int, drops: tuple[float, ...], threads: int, seed: int, json_file: Path | None) -> None:
    options, network = chosen(), NETWORKS[name]
    title = f"A budget for {network.title}"
    if reason := network.missing(data):
        sys.exit(skip(title, reason, json_file))
    torch.set_num_threads(threads)
    progress = clock()
    progress("loading the network and its data")
    loaded = network.load(data, count, seed)
    progress("measuring what each form of each weight does to the outputs")
    start = time.process_time()
    planner = Planner(loaded.program, loaded.batches, config=PlanConfig(seed=seed))
    rows = [Row("processor time to measure the effects", time.process_time() - start, "s")]
    if sizes:
        rows += _sizes(network, loaded, planner, sizes, seed, progress)
    for drop in drops:
        progress(f"max_drop {drop:g}")
        rows += _drop(network, loaded, planner, drop)
    sys.exit(finish(title, rows, options, json_file))


def _sizes(network: Network, loaded: Loaded, planner: Planner, count: int, seed: int, progress: Callable[[str], None]) -> list[Row]:
    """Each of the smallest uniform recipes beside the plan of the same bytes."""
    judge = loaded.judge(slice(None))

    def measured(program: Program) -> Measured:
        return judge(unlifted(program.exported))

    rows = _figures(network, "float", measured(loaded.program))
    gains = []
    for name, limit, uniform in _by_size(network, loaded, count, seed, progress):
        progress(f"{name}: {limit:,} bytes")
        theirs = measured(uniform)
        start = time.process_time()
        small = planner.within(limit)
        seconds = time.process_time() - start
        ours = measured(small)
        gain = ours.points - theirs.points
        gains.append(float(gain.mean()))
        rows += [
            *_figures(network, name, theirs),
            at_least(f"{name}: {network.points}, plan", float(ours.points.mean()), "%", float(theirs.points.mean())),
            Row(f"{name}: standard error of the difference", standard_error(gain), "points"),
            Row(f"{name}: {network.beside}, plan", ours.beside, "%"),
            at_most(f"{name}: bytes of the plan's model.pt", file_bytes(small), "bytes", limit),
            Row(f"{name}: gap of the choice", 100 * small.provenance[0]["gap"], "%"),
            Row(f"{name}: processor time to choose and compress", seconds, "s"),
        ]
    if count >= SMALLEST:
        rows.append(at_least(f"mean gain at the smallest {SMALLEST}", statistics.mean(gains[-SMALLEST:]), "points", GAIN))
    return rows


def _by_size(network: Network, loaded: Loaded, count: int, seed: int, progress: Callable[[str], None]) -> list[tuple[str, int, Program]]:
    """(recipe, bytes of its model.pt, program) of the smallest uniform recipes, the largest file first."""
    found = []
    for name, method in [*network.uniform.items()][-count:]:
        progress(f"{name}: the uniform recipe")
        uniform = compress(loaded.program, Recipe((Rule(method),), title=name), loaded.batches, CompressConfig(seed=seed))
        found.append((name, file_bytes(uniform), uniform))
    return sorted(found, key=lambda entry: -entry[1])


def _figures(network: Network, name: str, found: Measured) -> list[Row]:
    return [
        Row(f"{name}: {network.points}", float(found.points.mean()), "%"),
        Row(f"{name}: {network.beside}", found.beside, "%"),
    ]


def _drop(network: Network, loaded: Loaded, planner: Planner, drop: float) -> list[Row]:
    """A plan by every second test sample, and what is lost on these and on the others, which it never saw."""
    seen, others = (loaded.judge(slice(first, None, 2)) for first in (0, 1))
    small = planner.keeping(drop, lambda run: seen(run).points)
    name = f"max_drop {drop:g}"
    rows = [Row(f"{name}: bytes of model.pt", file_bytes(small), "bytes")]
    for what, judge, limit in (("samples that plan saw", seen, drop), ("held-out samples", others, drop + HELD_OUT)):
        whole, ours = (judge(unlifted(program.exported)).points for program in (loaded.program, small))
        lost = whole - ours
        rows += [
            at_most(f"{name}: {network.points} lost on {len(lost):,} {what}", float(lost.mean()), "points", limit),
            Row(f"{name}: standard error on {what}", standard_error(lost), "points"),
        ]
    return rows


if __name__ == "__main__":
    main()
