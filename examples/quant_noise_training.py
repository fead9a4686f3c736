"""What Quant-Noise is for: one network, trained with and without it, in the same tables. python examples/quant_noise_training.py FOLDER.

Handwritten digits of scikit-learn. Tables are made by k-means alone, so that the difference is the training's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import qn_deploy
from qn_deploy import noise
from qn_deploy.recipe import Recipe, Rule, Table

TABLES = Recipe((Rule(Table(8, 16), module="Linear"),), title="half a bit a weight")
EPOCHS, RATE, TRAIN = 40, 0.3, 1_200


def network() -> nn.Module:
    """Images float32 [N, 64] -> logits [N, 10]."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """A plain loop: the noise is in the model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        noise.refresh(model)  # finds the centroids anew
        for batch in torch.randperm(len(images)).split(64):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> None:
    """Trains both, compresses both, exports the one with noise."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1, torch.tensor(digits.target)
    tests = images[TRAIN:].split(50)
    found: dict[str, float] = {}
    for name, rate in (("plain", 0.0), ("Quant-Noise", RATE)):
        model = network()
        noise.attach(model, TABLES, rate, noise.Options(product="exact"))
        train(model, images[:TRAIN], labels[:TRAIN])
        noise.remove(model)
        model.eval()
        program = qn_deploy.capture(model, (tests[0][:8],))
        small = qn_deploy.compress(program, TABLES)
        compressed = small.exported.module()
        with torch.no_grad():
            scores = torch.cat([model(each) for each in tests]), torch.cat([compressed(each)[0] for each in tests])
        right = [100 * float((each.argmax(1) == labels[TRAIN:]).float().mean()) for each in scores]
        found[name] = right[1]
        print(f"{name}: {right[0]:.1f} % in float, {right[1]:.1f} % in tables of {TABLES.title}")
    print(f"gain: {found['Quant-Noise'] - found['plain']:.1f} points")

    small = qn_deploy.calibrate(small, [(batch,) for batch in images[:TRAIN].split(64)])
    qn_deploy.save(small, folder / "model.pt")
    print(qn_deploy.export(small, folder / "build"))
    report = qn_deploy.verify(folder / "build")
    print(report)
    sys.exit(not report.passed)


if __name__ == "__main__":
    main()
