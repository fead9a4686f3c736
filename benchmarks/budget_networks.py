"""The networks that a budget is measured on: their float programs, what calibrates them, and what their test samples say of a program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cifar10
import imagenet
import minilm
import torch
from cifar_training import CALIBRATION
from classifier import MAX_BATCH, Labelled, float_program
from torch import Tensor, nn

import qn_deploy
from qn_deploy.compression.metric import Run
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.program import Batch, Program
from qn_deploy.recipe import Int4, Method, Table

BATCH = 64  # CIFAR-10's images that calibrate together


@dataclass(frozen=True)
class Measured:
    """What the test samples say of a program.

    Attributes:
        points: float64 [N], what each sample is worth, in %: right or not, or the cosine to the float vector.
        beside: a second figure of all of them, in %.
    """

    points: Tensor
    beside: float


Judge = Callable[[Run], Measured]


@dataclass(frozen=True)
class Loaded:
    """A network and its data.

    Attributes:
        module: trained, in eval mode.
        program: captured of it, float.
        batches: that calibrate.
        judge: of these of the test samples.
    """

    module: nn.Module
    program: Program
    batches: list[Batch]
    judge: Callable[[slice], Judge]


@dataclass(frozen=True)
class Network:
    """A network as it is named on the command line.

    Attributes:
        title: of the table.
        points: what the mean of the samples' points is called.
        beside: what the second figure is called.
        uniform: five recipes of one rule, the largest file first. What a table does not divide is int8, so which of two files is larger
            shows when they are written.
        missing: why it can't be measured here, or None.
        load: from a folder, at most so many test samples, and the seed of their choice.
    """

    title: str
    points: str
    beside: str
    uniform: dict[str, Method]
    missing: Callable[[Path], str | None]
    load: Callable[[Path, int, int], Loaded]


def _table(block: int, centroids: int) -> dict[str, Method]:
    return {f"tables of {block}, K={centroids}": Table(block, centroids)}


def _resnet20(data: Path, count: int, seed: int) -> Loaded:
    inputs, labels = cifar10.images(data / cifar10.TEST, count, seed)
    model = cifar10.resnet20(data / cifar10.RESNET20)
    program = float_program(model, Labelled(inputs, labels))
    calibration, _ = cifar10.images(data / cifar10.TRAIN, CALIBRATION, seed)
    return Loaded(model, program, [(batch,) for batch in calibration.split(BATCH)], _by_labels(program, inputs, labels, MAX_BATCH))


def _efficientnet(data: Path, count: int, seed: int) -> Loaded:
    pixels, labels = imagenet.images_of(data / imagenet.FILE)
    batches: list[Batch] = [(batch,) for batch in pixels[: imagenet.UNLABELLED].split(imagenet.BATCH)]
    model = imagenet.load_model()
    program = qn_deploy.capture(model, (batches[0][0][:2],))
    tests = slice(imagenet.UNLABELLED, imagenet.UNLABELLED + count)
    return Loaded(model, program, batches, _by_labels(program, pixels[tests], labels[tests], imagenet.BATCH))


def _by_labels(program: Program, inputs: Tensor, labels: Tensor, batch: int) -> Callable[[slice], Judge]:
    """Judges of a classifier: right answers, and beside them those that the float program gives too."""

    def judge(part: slice) -> Judge:
        tests = Labelled(inputs[part], labels[part])

        def classes(run: Run) -> Tensor:
            return tests.run(lambda x: run(x)[0], batch).argmax(1)

        whole = classes(unlifted(program.exported))

        def measured(run: Run) -> Measured:
            found = classes(run)
            return Measured(100 * (found == tests.labels).double(), 100 * float((found == whole).double().mean()))

        return measured

    return judge


class _Vector(nn.Module):
    """A sentence encoder without its hidden states, which are no output of a product."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Ids and mask int64 [N, T] -> unit vectors [N, D]."""
        vector: Tensor = self.encoder(ids, mask)[0]
        return vector


def _minilm(data: Path, count: int, seed: int) -> Loaded:
    torch.manual_seed(seed)
    encoder, tokenize = minilm.load_model()
    model = _Vector(encoder).eval()
    batches = minilm.calibration(minilm.sentences(data, seed), tokenize)
    program = minilm.captured(model, batches[0])

    def judge(part: slice) -> Judge:
        tests = minilm.Judge(data / minilm.STSB, program, tokenize, slice(part.start, count // 2, part.step))

        def measured(run: Run) -> Measured:
            vectors = tests.vectors(run)
            return Measured(100 * tests.cosines(vectors).double(), tests.correlation(vectors))

        return measured

    return Loaded(model, program, [*batches], judge)


AGREEMENT = "answers as in float"
NETWORKS = {
    "resnet20": Network(
        "ResNet-20 on CIFAR-10",
        "accuracy",
        AGREEMENT,
        {"int4": Int4(), **_table(2, 16), **_table(4, 16), **_table(9, 256), **_table(9, 16)},
        cifar10.missing,
        _resnet20,
    ),
    "efficientnet_lite0": Network(
        "EfficientNet-Lite0 on ImageNet",
        "accuracy",
        AGREEMENT,
        {"int4": Int4(), **_table(4, 256), **_table(2, 16), **_table(8, 256), **_table(4, 16)},
        imagenet.missing,
        _efficientnet,
    ),
    "minilm": Network(
        "MiniLM on STS-B",
        "cosine to float",
        "Spearman",
        {"int4": Int4(), **_table(3, 256), **_table(4, 256), **_table(6, 256), **_table(8, 256)},
        minilm.missing,
        _minilm,
    ),
}
