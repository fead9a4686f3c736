"""ResNet-20 for CIFAR-10: compressed after training, with iPQ, and with Quant-Noise and iPQ; exported, verified, measured."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cifar10
import click
import paired
import torch
from classifier import Labelled, Stage, float_row, measure
from rows import Row, below, finish, json_option, seed_option, skip
from torch import Tensor, nn

from qn_deploy import noise
from qn_deploy.compress import IPQ, Compressed, compress, ipq
from qn_deploy.program.exporter import find_exporters
from qn_deploy.recipe import Int8, Recipe, Rule, Table

TITLE = "ResNet-20 on CIFAR-10"
ROOT = Path(__file__).resolve().parent.parent
BATCH, CALIBRATION = 128, 256
FINE_TUNE_LR = 0.01
IPQ_BATCH, TEMPERATURE = 32, 4.0  # many small steps: without BatchNorm only a low learning rate is stable
ONNX_MB = 0.14  # MB = 2^20 bytes

# 3x3 kernels share codes, with a codebook of 64 where the layer reads 16 channels, else of 256. The stem sees raw pixels: int8.
RECIPE = Recipe(
    (
        Rule(Int8(), name="conv1.weight"),
        Rule(Table(9, 64), name="layer1.*"),
        Rule(Table(9, 64), name="layer2.0.conv1.weight"),
        Rule(Table(9, 256), module="Conv2d", kernel=(3, 3)),
        Rule(Table(8, 16), module="Linear"),
    ),
    title="resnet20",
)


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
@click.option("--noise", "rate", default=0.0, show_default=True, help="Also fine-tune with Quant-Noise at this rate (0.1), then iPQ.")
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
    options = {name: value for name, value in click.get_current_context().params.items() if not isinstance(value, Path | None)}
    if reason := cifar10.missing(data):
        sys.exit(skip(TITLE, reason, json_file))
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    progress = _clock()
    progress("decoding images")
    tests = Labelled(*cifar10.images(data / cifar10.TEST, images, seed))
    train, labels = cifar10.images(data / cifar10.TRAIN, train_images, seed)
    calibration, train = train[:CALIBRATION], train.contiguous(memory_format=torch.channels_last)  # trains a quarter faster
    downloaded = cifar10.resnet20(data / cifar10.RESNET20)
    rows = [float_row("as downloaded", downloaded, tests)]

    progress("fine-tuning the float model on these JPEGs")
    model = copy.deepcopy(downloaded)
    cifar10.fine_tune(model, train, labels, steps, BATCH, FINE_TUNE_LR, seed)
    rows.append(float_row("fine-tuned", model, tests))

    def road(name: str, compressed: Compressed) -> Stage:
        stage = measure(name, compressed, tests, calibration, out / name.replace(" ", "-"), progress)
        rows.extend([*stage.rows, below(f"{name}: model.onnx in MB", len(stage.files["onnx"]) / 2**20, "MB", ONNX_MB)])
        return stage

    def iterative(student: nn.Module) -> Compressed:
        batches = [(batch,) for batch in torch.split(train, IPQ_BATCH)]
        config = IPQ(stages=3, steps=ipq_steps, final_steps=ipq_steps, lr=ipq_lr, temperature=TEMPERATURE, seed=seed)
        return ipq(student, RECIPE, batches, config, teacher=model)

    progress("compressing after training")
    road("after training", compress(model, RECIPE, (tests.inputs[:1],), seed))
    progress("iPQ")
    stage = road("iPQ", iterative(model))
    if rate > 0:
        progress("fine-tuning with Quant-Noise")
        noisy = copy.deepcopy(downloaded)
        noise.attach(noisy, RECIPE, p=rate)
        cifar10.fine_tune(noisy, train, labels, steps, BATCH, FINE_TUNE_LR, seed)
        noise.remove(noisy)
        rows.append(float_row("fine-tuned with Quant-Noise", noisy, tests))
        progress("Quant-Noise, then iPQ")
        stage = road("Quant-Noise and iPQ", iterative(noisy))
    progress("timing")
    rows += _timings(stage, model, tests.inputs[:1])
    constants = {"batch": BATCH, "lr": FINE_TUNE_LR, "ipq_batch": IPQ_BATCH, "temperature": TEMPERATURE, "calibration": CALIBRATION}
    sys.exit(finish(TITLE, rows, constants | options, json_file))


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


def _clock() -> Callable[[str], None]:
    start = time.perf_counter()

    def tell(stage: str) -> None:
        click.echo(f"  [{time.perf_counter() - start:5.0f} s] {stage}", err=True)

    return tell


if __name__ == "__main__":
    main()
