"""ResNet-20 for CIFAR-10: compressed after training, with iPQ, and with Quant-Noise and iPQ; exported, verified, measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import cifar10
import click
import paired
import torch
from cifar_training import BATCH, CALIBRATION, IPQ_BATCH, LR, RECIPE, TEMPERATURE, Training, samples
from classifier import Labelled, Stage, accuracy, float_program, measure
from rows import Row, at_least, below, chosen, clock, finish, json_option, seed_option, skip
from torch import Tensor, nn

from qn_deploy.compression import CompressConfig, compress
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.export import export
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.program.program import Program

TITLE = "ResNet-20 on CIFAR-10"
ROOT = Path(__file__).resolve().parent.parent
ONNX_MB = 0.14  # MB = 2^20 bytes
AFTER_TRAINING = 50.0  # % right, without fine-tuning
RATES = (0.0, 0.3)  # what bytes count while codes are chosen, for entropy-coded files
FEWER = 8.0  # % of the bytes of a .pte, at equal accuracy


@click.command(help=__doc__)
@click.option(
    "--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with cifar10/ and cifar_resnet/."
)
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "build" / "cifar_resnet", help="Folder for model.pt and the builds.")
@click.option("--images", default=2_000, show_default=True, help="Test images.")
@click.option("--train-images", default=16_000, show_default=True, help="Images to fine-tune with.")
@click.option("--steps", default=250, show_default=True, help=f"Of fine-tuning on these JPEGs, {BATCH} images each.")
@click.option(
    "--ipq-steps", default=250, show_default=True, help=f"Of iPQ, {IPQ_BATCH} images each, for each of its 3 groups and for the int8 stage."
)
@click.option("--ipq-lr", default=5e-4, show_default=True, help="Learning rate of iPQ.")
@click.option("--noise", "rate", default=0.0, show_default=True, help="Also fine-tune with Quant-Noise at this rate (0.3), then iPQ.")
@click.option("--threads", default=2, show_default=True, help="Of training; timings use one.")
@seed_option
@json_option
def main(
    data: Path,
    out: Path,
    images: int,
    train_images: int,
    steps: int,
    ipq_steps: int,
    ipq_lr: float,
    rate: float,
    threads: int,
    seed: int,
    json_file: Path | None,
) -> None:
    options = chosen()
    if reason := cifar10.missing(data):
        sys.exit(skip(TITLE, reason, json_file))
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    progress = clock()
    progress("decoding images")
    tests, train = samples(data, images, train_images, seed)
    calibration = train.inputs[:CALIBRATION].contiguous()
    training = Training(train, steps, ipq_steps, ipq_lr, seed)
    downloaded = cifar10.resnet20(data / cifar10.RESNET20)
    rows: list[Row] = []

    def captured(name: str, model: nn.Module) -> Program:
        program = float_program(model, tests)
        rows.append(Row(f"{name}: accuracy in float", accuracy(program, tests), "%"))
        return program

    captured("as downloaded", downloaded)

    progress("fine-tuning the float model on these JPEGs")
    model = training.fine_tuned(downloaded)
    trained = captured("fine-tuned", model)

    def road(name: str, compressed: Program) -> Stage:
        stage = measure(name, compressed, tests, out / name.replace(" ", "-"), progress)
        rows.extend([*stage.rows, below(f"{name}: model.onnx in MB", len(stage.files["onnx"]) / 2**20, "MB", ONNX_MB)])
        return stage

    progress("compressing after training")
    compressed = compress(trained, RECIPE, [(batch,) for batch in calibration.split(64)], CompressConfig(seed=seed))
    rows.append(at_least("after training: accuracy of the compressed weights", accuracy(compressed, tests), "%", AFTER_TRAINING))
    road("after training", compressed)
    progress("entropy coding")
    rows += _coding(trained, calibration, tests, out / "coding", seed)
    progress("iPQ")
    stage = road("iPQ", training.iterative(trained, trained))
    if rate > 0:
        progress("fine-tuning with Quant-Noise")
        noisy = captured("fine-tuned with Quant-Noise", training.with_noise(downloaded, RECIPE, rate))
        progress("Quant-Noise, then iPQ")
        stage = road("Quant-Noise and iPQ", training.iterative(noisy, trained))
    progress("timing")
    rows += _timings(stage, model, tests.inputs[:1])
    constants = {"batch": BATCH, "lr": LR, "ipq_batch": IPQ_BATCH, "temperature": TEMPERATURE, "calibration": CALIBRATION}
    sys.exit(finish(TITLE, rows, constants | options, json_file))


def _coding(trained: Program, calibration: Tensor, tests: Labelled, out: Path, seed: int) -> list[Row]:
    """Bytes of model.pte, entropy-coded and not, for tables that were chosen without regard to bytes, and with it."""
    rows: list[Row] = []
    plain = 0
    for rate in RATES:
        name = f"entropy coding, rate {rate}"
        small = compress(trained, RECIPE, [(batch,) for batch in calibration.split(64)], CompressConfig(seed=seed, rate=rate))
        rows.append(Row(f"{name}: accuracy of the compressed weights", accuracy(small, tests), "%"))
        sizes = {coding: _pte_bytes(small, out, coding) for coding in ("none", "entropy")}
        plain = plain or sizes["none"]
        rows += [Row(f"{name}: model.pte, coding {coding}", size, "bytes") for coding, size in sizes.items()]
        rows.append(Row(f"{name}: model.pte, fewer bytes than without either", 100 * (1 - sizes["entropy"] / plain), "%"))
    last = rows.pop()
    return [*rows, at_least(last.name, last.value, last.unit, FEWER)]


def _pte_bytes(program: Program, folder: Path, coding: str) -> int:
    export(program, folder, ExportConfig(only=("executorch",), options={"executorch": {"coding": coding}}))
    return (folder / "model.pte").stat().st_size


def _timings(stage: Stage, model: nn.Module, image: Tensor) -> list[Row]:
    """One image at a time on one thread: the table files against their dense int8 twins and against float32 ONNX."""
    torch.set_num_threads(1)
    plain = paired.onnxruntime_call(paired.float_onnx(model, image), image)
    rows = []

    def time_pair(name: str, second: str, a: paired.Call, b: paired.Call) -> None:
        rows.extend(paired.rows(f"time, {name}", "tables", second, paired.paired(a, b)))

    makers: dict[str, Callable[..., paired.Call]] = {"onnx": paired.onnxruntime_call, "executorch": paired.executorch_call}
    for exporter, make in makers.items():
        file, dense = stage.files[exporter], find_exporters()[exporter].dense(stage.files[exporter])
        tables = make(file, image)
        time_pair(exporter, "dense int8", tables, make(dense, image))
        time_pair(exporter, "float32 on onnxruntime", tables, plain)
        time_pair(f"{exporter}, load and first run", "dense int8", _load(make, file, image), _load(make, dense, image))
    return rows


def _load(make: Callable[..., paired.Call], file: bytes, image: Tensor) -> paired.Call:
    return lambda: make(file, image)()


if __name__ == "__main__":
    main()
