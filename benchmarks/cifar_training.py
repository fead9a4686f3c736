"""How the ResNet-20 benchmarks train and compress: recipes, fine-tuning on these JPEGs with Quant-Noise or without, iPQ."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import cifar10
import torch
from classifier import Labelled
from torch import nn

from qn_deploy import noise
from qn_deploy.compression import IPQConfig, ipq
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int4, Int8, Recipe, Rule, Table

BATCH, LR = 128, 0.01  # of fine-tuning
IPQ_BATCH, TEMPERATURE = 32, 4.0  # many small steps: without BatchNorm only a low learning rate is stable
STATISTICS_BATCH = 500
CALIBRATION = 256  # images, for error feedback and the ranges of activations
REFRESH = 25  # steps between two looks of exact noise at the weights; five times an epoch, as there are but two

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
INT4 = Recipe((Rule(Int4()),), title="resnet20-int4")


def samples(data: Path, images: int, train_images: int, seed: int) -> tuple[Labelled, Labelled]:
    """Images to test with and images to train with, both by chance; those of training with the memory format channels_last."""
    inputs, labels = cifar10.images(data / cifar10.TRAIN, train_images, seed)
    train = Labelled(inputs.contiguous(memory_format=torch.channels_last), labels)
    return Labelled(*cifar10.images(data / cifar10.TEST, images, seed)), train


@dataclass(frozen=True)
class Training:
    """What every model of one comparison gets, whether it trains with noise or without.

    Attributes:
        train: the images, their memory format channels_last, which trains a quarter faster.
        steps: of fine-tuning, BATCH images each.
        ipq_steps: of iPQ, IPQ_BATCH images each, for each of its 3 groups and for the int8 stage.
        ipq_lr: learning rate of iPQ.
        seed: of everything random.
    """

    train: Labelled
    steps: int
    ipq_steps: int
    ipq_lr: float
    seed: int

    def fine_tuned(self, downloaded: nn.Module) -> nn.Module:
        """A copy of the float model, fine-tuned."""
        model = copy.deepcopy(downloaded)
        cifar10.fine_tune(model, self.train.inputs, self.train.labels, self.steps, BATCH, LR, self.seed)
        return self._settled(model)

    def with_noise(self, downloaded: nn.Module, recipe: Recipe, p: float) -> nn.Module:
        """The same with Quant-Noise at rate p: exact noise where a table will be, rounding where integers will."""
        model = copy.deepcopy(downloaded)
        torch.manual_seed(self.seed)
        noise.attach(model, recipe, p, noise.Options(product="exact", seed=self.seed))

        def refresh(step: int) -> None:
            if step % REFRESH == 0:
                noise.refresh(model)

        cifar10.fine_tune(model, self.train.inputs, self.train.labels, self.steps, BATCH, LR, self.seed, refresh)
        noise.remove(model)
        return self._settled(model)

    def _settled(self, model: nn.Module) -> nn.Module:
        """Lets BatchNorm see the weights without noise: its running statistics are those of noised ones."""
        noise.settle(model, torch.split(self.train.inputs, STATISTICS_BATCH))
        return model.eval()

    def iterative(self, student: Program, teacher: Program) -> Program:
        """A student compressed into tables by iPQ; needs no labels."""
        batches = [(batch,) for batch in torch.split(self.train.inputs, IPQ_BATCH)]
        config = IPQConfig(
            stages=3,
            steps=self.ipq_steps,
            final_steps=self.ipq_steps,
            lr=self.ipq_lr,
            temperature=TEMPERATURE,
            seed=self.seed,
            calibration=CALIBRATION // IPQ_BATCH,
        )
        return ipq(student, RECIPE, batches, config, teacher)
