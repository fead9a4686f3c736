"""ResNet-20 for CIFAR-10, compressed after training and tuned on unlabelled images: what each stage of tuning gives, over several seeds."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from pathlib import Path

import cifar10
import click
import torch
from cifar_training import CALIBRATION, RECIPE, Training, samples
from classifier import Labelled, accuracy, float_program
from rows import at_least, at_most, chosen, clock, finish, json_option, over_seeds, seed_option, skip

from qn_deploy.compression import BlockConfig, CodeConfig, CompressConfig, TuneConfig, compress, tune
from qn_deploy.exporting.describe import theoretical_bytes
from qn_deploy.program.program import Program

TITLE = "Tuning ResNet-20, CIFAR-10"
ROOT = Path(__file__).resolve().parent.parent
BATCH = 64
TUNED, MB = 85.2, 0.063  # of the whole, % right; MB = 2^20 bytes
ROADS = ("tuned", "codes", "blocks", "blocks and tuned", "blocks and codes")


@click.command(help=__doc__)
@click.option(
    "--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with cifar10/ and cifar_resnet/."
)
@click.option("--road", "roads", type=click.Choice(ROADS), multiple=True, default=ROADS, show_default=True, help="May be given again.")
@click.option("--seeds", default=3, show_default=True, help="How many, from --seed on.")
@click.option("--images", default=10_000, show_default=True, help="Test images.")
@click.option("--train-images", default=16_000, show_default=True, help="To fine-tune the float model with, and, unlabelled, to tune with.")
@click.option("--steps", default=250, show_default=True, help="Of fine-tuning the float model.")
@click.option("--tune-steps", default=250, show_default=True, help=f"Of tuning end to end, {BATCH} images each.")
@click.option("--lr", default=1e-2, show_default=True, help="All learning rates of tuning.")
@click.option("--block-steps", default=100, show_default=True, help="Of tuning each block.")
@click.option("--block-batches", default=32, show_default=True, help=f"That move through the blocks, {BATCH} images each.")
@click.option("--every", default=CodeConfig().every, show_default=True, help="Steps between two moves of codes.")
@click.option("--share", default=CodeConfig().share, show_default=True, help="Of the codes, the most that change in one move.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(
    data: Path,
    roads: tuple[str, ...],
    seeds: int,
    images: int,
    train_images: int,
    steps: int,
    tune_steps: int,
    lr: float,
    block_steps: int,
    block_batches: int,
    every: int,
    share: float,
    threads: int,
    seed: int,
    json_file: Path | None,
) -> None:
    options = chosen()
    if reason := cifar10.missing(data):
        sys.exit(skip(TITLE, reason, json_file))
    torch.set_num_threads(threads)
    progress = clock()
    downloaded = cifar10.resnet20(data / cifar10.RESNET20)
    codes = CodeConfig(every=every, share=share)
    found: dict[str, list[float]] = defaultdict(list)
    for run in range(seed, seed + seeds):
        progress(f"seed {run}: decoding images")
        tests, train = samples(data, images, train_images, run)
        training = Training(train, steps, 0, 0.0, run)
        inputs = train.inputs.contiguous()
        batches = [(batch,) for batch in inputs.split(BATCH)]
        teacher = float_program(training.fine_tuned(downloaded), tests)

        def keep(name: str, program: Program, begin: float, tests: Labelled = tests, run: int = run) -> None:
            found[f"{name}, CPU time"].append(time.process_time() - begin)
            found[name].append(accuracy(program, tests))
            if program.weights:
                found["bytes"].append(theoretical_bytes(program))
            progress(f"seed {run}: {name}: {found[name][-1]:.2f} %")

        keep("float", teacher, time.process_time())
        begin = time.process_time()
        start = compress(teacher, RECIPE, [(batch,) for batch in inputs[:CALIBRATION].split(BATCH)], CompressConfig(seed=run))
        keep("compressed", start, begin)
        for road in roads:
            moving = codes if "codes" in road else None
            blocks = BlockConfig(block_steps, block_batches, lr=lr, scale_lr=lr, rest_lr=lr, codes=moving) if "blocks" in road else None
            config = TuneConfig(0 if road == "blocks" else tune_steps, lr=lr, scale_lr=lr, rest_lr=lr, codes=moving, blocks=blocks)
            begin = time.process_time()
            keep(road, tune(start, teacher, batches, config), begin)

    rows = []
    for name in ("float", "compressed", *roads):
        rows += over_seeds(name, found[name], "%")
        rows += over_seeds(f"{name}, CPU time", found[f"{name}, CPU time"], "s")[:1]
    best = max(sum(found[road]) / seeds for road in roads)
    rows += [at_least("best mean", best, "%", TUNED), at_most("constants", max(found["bytes"]) / 2**20, "MB", MB)]
    sys.exit(finish(TITLE, rows, options, json_file))


if __name__ == "__main__":
    main()
