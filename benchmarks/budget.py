"""ResNet-20 for CIFAR-10 within a budget: `plan` beside the uniform recipe whose file has the same bytes, at five sizes."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cifar10
import click
import torch
from cifar_training import CALIBRATION
from classifier import Labelled, accuracy, float_program
from rows import Row, at_least, at_most, chosen, clock, finish, json_option, seed_option, skip

from qn_deploy.compression import CompressConfig, PlanConfig, compress, plan
from qn_deploy.compression.plan import file_bytes
from qn_deploy.program.program import Batch, Program
from qn_deploy.recipe import Int4, Method, Recipe, Rule, Table

TITLE = "A budget for ResNet-20 on CIFAR-10"
ROOT = Path(__file__).resolve().parent.parent
UNIFORM: dict[str, Method] = {  # what a table does not divide is int8; which file is larger shows when it is written
    "int4": Int4(),
    "tables of 2, K=16": Table(2, 16),
    "tables of 4, K=16": Table(4, 16),
    "tables of 9, K=256": Table(9, 256),
    "tables of 9, K=16": Table(9, 16),
}
SMALLEST, GAIN = 3, 2.0  # at so many of the smallest sizes the mean gain in points
BATCH = 64


def by_size(program: Program, batches: list[Batch], seed: int, progress: Callable[[str], None]) -> list[tuple[str, int, Program]]:
    """(recipe, bytes of its model.pt, program) of each uniform recipe, the largest file first."""
    found = []
    for name, method in UNIFORM.items():
        progress(name)
        uniform = compress(program, Recipe((Rule(method),), title=name), batches, CompressConfig(seed=seed))
        found.append((name, file_bytes(uniform), uniform))
    return sorted(found, key=lambda entry: -entry[1])


@click.command(help=__doc__)
@click.option(
    "--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with cifar10/ and cifar_resnet/."
)
@click.option("--images", default=2_000, show_default=True, help="Test images.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(data: Path, images: int, threads: int, seed: int, json_file: Path | None) -> None:
    options = chosen()
    if reason := cifar10.missing(data):
        sys.exit(skip(TITLE, reason, json_file))
    torch.set_num_threads(threads)
    progress = clock()
    progress("decoding images")
    tests = Labelled(*cifar10.images(data / cifar10.TEST, images, seed))
    inputs, _ = cifar10.images(data / cifar10.TRAIN, CALIBRATION, seed)
    batches = [(batch,) for batch in inputs.split(BATCH)]
    program = float_program(cifar10.resnet20(data / cifar10.RESNET20), tests)
    rows = [Row("float: accuracy", accuracy(program, tests), "%")]
    gains = []
    for name, limit, uniform in by_size(program, batches, seed, progress):
        progress(f"{name}: {limit:,} bytes")
        right = accuracy(uniform, tests)
        start = time.process_time()
        small = plan(program, batches, max_size=limit, config=PlanConfig(seed=seed))
        seconds = time.process_time() - start
        found, entry = accuracy(small, tests), small.provenance[0]
        gains.append(found - right)
        rows += [
            Row(f"{name}: accuracy", right, "%"),
            at_least(f"{name}: accuracy of the plan", found, "%", right),
            at_most(f"{name}: bytes of the plan's model.pt", file_bytes(small), "bytes", limit),
            Row(f"{name}: gap of the choice", 100 * entry["gap"], "%"),
            Row(f"{name}: processor time of the plan", seconds, "s"),
        ]
    rows.append(at_least(f"mean gain at the smallest {SMALLEST}", statistics.mean(gains[-SMALLEST:]), "points", GAIN))
    sys.exit(finish(TITLE, rows, options, json_file))


if __name__ == "__main__":
    main()
