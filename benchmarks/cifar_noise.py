"""ResNet-20 for CIFAR-10 over several seeds: what Quant-Noise gains for iPQ tables and for int4, in accuracy alone, without exports."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import cifar10
import click
import torch
from cifar_training import INT4, RECIPE, Training, samples
from classifier import Labelled, accuracy, float_program
from rows import at_least, at_most, chosen, clock, finish, json_option, over_seeds, seed_option, skip

from qn_deploy.compression import CompressConfig, compress
from qn_deploy.exporting.describe import theoretical_bytes
from qn_deploy.program.program import Program

TITLE = "Quant-Noise on ResNet-20, CIFAR-10"
ROOT = Path(__file__).resolve().parent.parent
TABLES_ACCURACY, INT4_ACCURACY = 82.5, 83.0
TABLES_MB = 0.0629  # MB = 2^20 bytes


@click.command(help=__doc__)
@click.option(
    "--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with cifar10/ and cifar_resnet/."
)
@click.option("--seeds", default=3, show_default=True, help="How many, from --seed on.")
@click.option("--images", default=10_000, show_default=True, help="Test images.")
@click.option("--train-images", default=16_000, show_default=True, help="Images to fine-tune with.")
@click.option("--steps", default=250, show_default=True, help="Of fine-tuning.")
@click.option("--ipq-steps", default=250, show_default=True, help="Of iPQ, for each of its 3 groups and for the int8 stage.")
@click.option("--ipq-lr", default=5e-4, show_default=True, help="Learning rate of iPQ.")
@click.option("--noise", "rate", default=0.3, show_default=True, help="Rate of Quant-Noise for tables.")
@click.option("--int4-noise", "int4_rate", default=0.5, show_default=True, help="Rate of Quant-Noise for int4.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(
    data: Path,
    seeds: int,
    images: int,
    train_images: int,
    steps: int,
    ipq_steps: int,
    ipq_lr: float,
    rate: float,
    int4_rate: float,
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
    found: dict[str, list[float]] = defaultdict(list)
    for run in range(seed, seed + seeds):
        progress(f"seed {run}: decoding images")
        tests, train = samples(data, images, train_images, run)
        training = Training(train, steps, ipq_steps, ipq_lr, run)

        def keep(name: str, program: Program, tests: Labelled = tests, run: int = run) -> Program:
            if program.weights:
                found[f"{name}, bytes"].append(theoretical_bytes(program))
            found[name].append(accuracy(program, tests))
            progress(f"seed {run}: {name}: {found[name][-1]:.2f} %")
            return program

        plain = keep("float", float_program(training.fine_tuned(downloaded), tests))
        keep("iPQ", training.iterative(plain, plain))
        keep("int4", compress(plain, INT4, config=CompressConfig(seed=run)))
        noisy = keep("float, trained with noise of tables", float_program(training.with_noise(downloaded, RECIPE, rate), tests))
        keep("Quant-Noise, then iPQ", training.iterative(noisy, plain))
        noisy = keep("float, trained with noise of int4", float_program(training.with_noise(downloaded, INT4, int4_rate), tests))
        keep("Quant-Noise, then int4", compress(noisy, INT4, config=CompressConfig(seed=run)))

    bars = {"Quant-Noise, then iPQ": TABLES_ACCURACY, "Quant-Noise, then int4": INT4_ACCURACY}
    accuracies = {name: values for name, values in found.items() if not name.endswith(", bytes")}
    rows = [row for name, values in accuracies.items() for row in over_seeds(name, values, "%", bars.get(name))]
    rows += [
        at_least(f"{name}: gain by noise, mean", mean(found[f"Quant-Noise, then {name}"]) - mean(found[name]), "points", 0)
        for name in ("iPQ", "int4")
    ]
    rows += [at_most("Quant-Noise, then iPQ: constants", max(found["Quant-Noise, then iPQ, bytes"]) / 2**20, "MB", TABLES_MB)]
    sys.exit(finish(TITLE, rows, options, json_file))


if __name__ == "__main__":
    main()
