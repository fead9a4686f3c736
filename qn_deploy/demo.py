"""`qn-deploy demo`: the whole road on scikit-learn's handwritten digits, in about a minute on two cores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Group
from torch import Tensor, nn

from qn_deploy import noise
from qn_deploy.compression import IPQConfig, Progress, compress, ipq
from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.build import Build
from qn_deploy.exporting.describe import theoretical_bytes
from qn_deploy.exporting.export import export
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.files import make_folder
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.program.store import save
from qn_deploy.recipe import Int8, Recipe, Rule, Table
from qn_deploy.report.tables import new_table, size
from qn_deploy.verification.ladder import verify
from qn_deploy.verification.report import Report

SEED = 0
EPOCHS, BATCH = 30, 64
NOISE = 0.1  # rate p of Quant-Noise
GRAIN = 0.3  # of the pixels while training, from -1 to 1: without it some digits that are drawn on a screen are read wrong
TRAIN = 1_200  # of the 1,797 digits; the rest is the test set
MAX_BATCH = 1_024  # the programs take any batch up to this

# The stem sees raw pixels and holds 1 % of the weights: int8. Whole 3x3 kernels share a code, the classifier goes by 4.
RECIPE = Recipe(
    (
        Rule(Int8(), name="stem.weight"),
        Rule(Table(9, 256), module="Conv2d", kernel=(3, 3)),
        Rule(Table(4, 64), module="Linear"),
    ),
    title="digits",
)


class DigitsNet(nn.Module):
    """A small residual network for 8x8 images, float32 [N, 1, 8, 8] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.down, self.down_norm = nn.Conv2d(32, 96, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(96)
        self.body, self.body_norm = nn.Conv2d(96, 96, 3, padding=1, bias=False), nn.BatchNorm2d(96)
        self.classifier = nn.Linear(96, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of each digit."""
        x = F.relu(self.stem_norm(self.stem(image)))
        x = F.relu(self.down_norm(self.down(x)))
        x = F.relu(x + self.body_norm(self.body(x)))
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Digits:
    """scikit-learn's digits: images float32 [N, 1, 8, 8] in [-1, 1], labels int64 [N]."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def accuracy(self, logits: Tensor) -> float:
        """Share of the test images that are classified right."""
        return float((logits.argmax(1) == self.test_labels).float().mean())


@dataclass(frozen=True)
class Shown:
    """What the demo shows; rich prints it as tables.

    Attributes:
        rows: (what, share of the test images that are right, bytes), the float constants first.
        build: what was exported.
        report: of the parity ladder.
    """

    rows: tuple[tuple[str, float, int], ...]
    build: Build
    report: Report

    def to_json(self) -> str:
        """For machines."""
        rows = [{"what": what, "accuracy": accuracy, "bytes": count} for what, accuracy, count in self.rows]
        return json.dumps({"folder": str(self.build.folder), "passed": self.report.passed, "rows": rows}, indent=1)

    def __rich__(self) -> Group:
        """Files, accuracy, ladder."""
        table = new_table("digits", "accuracy", "bytes", "smaller", title="accuracy on the test images, bytes of constants or file")
        for name, accuracy, count in self.rows:
            table.add_row(name, f"{accuracy:.2%}", size(count), f"{self.rows[0][2] / count:.1f} x")
        return Group(self.build, table, self.report)


def run(folder: Path, progress: Callable[[str], None]) -> Shown:
    """Trains, compresses, saves, exports and verifies.

    Args:
        folder: where model.pt and the build go.
        progress: called with the name of each stage.

    Raises:
        ToolchainError: scikit-learn is not installed.
    """
    torch.manual_seed(SEED)
    digits = load_digits()
    make_folder(folder)
    model = train(digits, progress)
    batches = list(torch.split(digits.train, BATCH))

    def tuned(at: Progress) -> None:
        if at.share == 1 and at.loss is not None:
            progress(f"iPQ: group {at.stage + 1} of {at.stages} tuned ({', '.join(at.names)}), loss {at.loss:.4f}")

    progress("iPQ: compressing group by group")
    dynamic = ({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},)
    plain = capture(model, (digits.test[:BATCH],), dynamic_shapes=dynamic)
    config = IPQConfig(stages=2, steps=120, final_steps=120, lr=0.05, seed=SEED, calibration=4)
    program = ipq(plain, RECIPE, [(batch,) for batch in batches], config, progress=tuned)
    progress(f"saving {folder / 'model.pt'}")
    save(program, folder / "model.pt")
    build = export(program, folder / "build", progress=progress)
    report = verify(folder / "build", progress=progress)
    progress("measuring accuracy on the test images")
    return Shown(tuple(_accuracies(digits, plain, program, build)), build, report)


def load_digits() -> Digits:
    """The digits in a fixed random order, split into training and test images.

    Raises:
        ToolchainError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise ToolchainError("the demo trains on scikit-learn's digits: pip install 'qn-deploy[demo]'") from None
    bunch = load()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(SEED))
    images = torch.tensor(bunch.images, dtype=torch.float32)[order, None] / 8 - 1
    labels = torch.tensor(bunch.target, dtype=torch.int64)[order]
    return Digits(images[:TRAIN], labels[:TRAIN], images[TRAIN:], labels[TRAIN:])


def train(digits: Digits, progress: Callable[[str], None]) -> nn.Module:
    """Trains a DigitsNet with Quant-Noise on; the noise is removed at the end."""
    model = DigitsNet()
    noise.attach(model, RECIPE, p=NOISE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for epoch in range(EPOCHS):
        if epoch % 10 == 0:
            progress(f"training with Quant-Noise, epochs {epoch + 1}-{epoch + 10} of {EPOCHS}")
        for batch in torch.split(torch.randperm(TRAIN), BATCH):
            images = digits.train[batch]
            loss = F.cross_entropy(model(images + GRAIN * torch.randn_like(images)), digits.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    noise.remove(model)
    return model.eval()


def _accuracies(digits: Digits, plain: Program, program: Program, build: Build) -> list[tuple[str, float, int]]:
    inputs, manifest = (digits.test,), build.manifest
    int8 = compress(plain, Recipe((Rule(Int8()),)))
    constants = {"float": manifest.float_bytes, "int8 weights, no tables": theoretical_bytes(int8)}
    constants["tables, float activations"] = manifest.theoretical_bytes
    with torch.no_grad():
        rows = [
            (what, digits.accuracy(each.exported.module()(*inputs)[0]), count)
            for (what, count), each in zip(constants.items(), (plain, int8, program), strict=True)
        ]
    simulated = lower(program, Form(Activations.STATIC)).simulate(inputs)
    rows.append(("tables, int8 activations, simulated", digits.accuracy(simulated[0]), manifest.theoretical_bytes))
    exporters = find_exporters()
    for name, entry in manifest.files.items():
        ((logits,),) = exporters[entry.exporter].run((build.folder / name).read_bytes(), (inputs,))
        rows.append((f"{name} on {entry.runtime}", digits.accuracy(logits), entry.bytes))
    return rows
