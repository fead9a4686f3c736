"""CIFAR-10 images and the trained ResNet-20 from files on disk, and plain training of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from models import CifarResNet
from torch import Tensor, nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the checkpoint was trained with
TRAIN, TEST = Path("cifar10/cifar10_train25k.npz"), Path("cifar10/cifar10_test.npz")
RESNET20 = Path("cifar_resnet/resnet20-12fca82f.th")


def missing(folder: Path) -> str | None:
    """Why the benchmark can't run: the files that `folder` does not hold, or None."""
    absent = [str(folder / file) for file in (TRAIN, TEST, RESNET20) if not (folder / file).exists()]
    return f"{', '.join(absent)} not found; give the folder with --data" if absent else None


def images(file: Path, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random sample of an archive of JPEGs: normalised images float32 [count, 3, 32, 32], labels int64 [count].

    The archive holds `jpeg` (all files end to end, uint8), `offset` (int64 [n + 1]) and `label` (int64 [n]), sorted by label.
    """
    from PIL import Image

    with np.load(file) as archive:
        data, offset, label = archive["jpeg"].tobytes(), archive["offset"], archive["label"]
    chosen = np.random.default_rng(seed).permutation(len(label))[:count]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(data[offset[i] : offset[i + 1]])).convert("RGB")) for i in chosen])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    return ((scaled - mean) / std).contiguous(), torch.from_numpy(label[chosen])


def resnet20(file: Path) -> CifarResNet:
    """The trained network, in eval mode."""
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(depth=3)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def shuffled(count: int, batch: int, steps: int, seed: int) -> Iterator[Tensor]:
    """`steps` batches of indices below `count`, epoch after epoch in a random order."""
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, count)
    while steps > 0:
        for chosen in torch.split(torch.randperm(count, generator=generator), batch)[: min(steps, count // batch)]:
            yield chosen
            steps -= 1


def fine_tune(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    before: Callable[[int], None] = lambda step: None,
) -> None:
    """SGD with momentum on labelled images, in place; BatchNorm in training mode, the rate falls to 0 along a cosine.

    `before` is called before each step with its number, from 0.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    model.train()
    for step, chosen in enumerate(shuffled(len(labels), batch, steps, seed)):
        before(step)
        loss = F.cross_entropy(model(inputs[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    model.eval()
