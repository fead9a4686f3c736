"""The paper's networks at their real size, random weights: files beside the paper's, and what the whole road costs.

Each goes through capture, compress (with calibration), export of both files and verify in this process. Bytes do not depend on what the
weights are, so random ones tell the size of trained ones. Accuracy is the matter of the other benchmarks.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import torch
from rows import Row, at_most, chosen, clock, finish, json_option, seed_option, skip
from torch import Tensor, nn

import qn_deploy
from qn_deploy import recipe
from qn_deploy.recipe import Recipe

TITLE = "the paper's networks at their real size"
MB = 1e6  # bytes
MEMORY = 3.0  # times the float model


@dataclass(frozen=True)
class Network:
    """One network of the paper.

    Attributes:
        package: that builds it.
        build: makes the module.
        batches: calibration batches of the paper's shape, from a seeded generator.
        recipe: the paper's.
        paper_mb: the file that the paper states, 10^6 bytes.
        compress_s: limit of capture and compress; None for none of its own.
        road_s: limit of the whole road.
    """

    package: str
    build: Callable[[], nn.Module]
    batches: Callable[[torch.Generator], list[tuple[Tensor, ...]]]
    recipe: Recipe
    paper_mb: float
    compress_s: float | None
    road_s: float


def _peak() -> int:
    """Bytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _tools(threads: int) -> int:
    """Bytes at the peak of the same road for a network of one small layer: torch, both runtimes, and all that the road imports."""
    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 32, generator=draw),)]
    with tempfile.TemporaryDirectory(prefix="qn-paper-") as folder:
        program = qn_deploy.compress(qn_deploy.capture(nn.Linear(32, 32), batches[0]), recipe.transformer(), batches)
        qn_deploy.export(program, folder)
        qn_deploy.verify(folder)
    return _peak()


def _roberta() -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    model: nn.Module = RobertaModel(RobertaConfig(max_position_embeddings=514, type_vocab_size=1), add_pooling_layer=False)
    return model


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50

    model: nn.Module = resnet50()
    return model


def _efficientnet_b3() -> nn.Module:
    from torchvision.models import efficientnet_b3

    model: nn.Module = efficientnet_b3()
    return model


def _tokens(draw: torch.Generator) -> list[tuple[Tensor, ...]]:
    return [(torch.randint(10, 50000, (8, 128), generator=draw),) for _ in range(8)]


def _images(side: int) -> Callable[[torch.Generator], list[tuple[Tensor, ...]]]:
    return lambda draw: [(torch.randn(16, 3, side, side, generator=draw),) for _ in range(16)]


NETWORKS = {
    "roberta_base": Network("transformers", _roberta, _tokens, recipe.roberta(), 14.0, 240.0, 480.0),
    "resnet50": Network("torchvision", _resnet50, _images(224), recipe.resnet(), 5.09, None, 360.0),
    "efficientnet_b3": Network("torchvision", _efficientnet_b3, _images(300), recipe.efficientnet(), 3.3, None, 600.0),
}


@click.command(help=__doc__)
@click.option("--network", default="roberta_base", show_default=True, type=click.Choice(list(NETWORKS)))
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(network: str, threads: int, seed: int, json_file: Path | None) -> None:
    options, title = chosen(), f"{TITLE}: {network}"
    wanted = NETWORKS[network]
    if find_spec(wanted.package) is None:
        sys.exit(skip(title, f"without the package {wanted.package}: pip install {wanted.package}", json_file))
    progress = clock()
    progress("a road of one layer, for the memory that the tools take")
    tools = _tools(threads)
    torch.manual_seed(seed)
    model = wanted.build().eval()
    size = sum(parameter.nbytes for parameter in model.parameters())
    batches = wanted.batches(torch.Generator().manual_seed(seed))
    began = time.perf_counter()
    progress("capturing")
    program = qn_deploy.capture(model, tuple(x[:2] for x in batches[0]))
    progress("compressing")
    compressed = qn_deploy.compress(program, wanted.recipe, batches)
    compress_s = time.perf_counter() - began
    compress_memory = _peak()
    del model, program, batches  # the compressed program has what verify compares with
    with tempfile.TemporaryDirectory(prefix="qn-paper-") as folder:
        build = qn_deploy.export(compressed, folder, progress=progress)
        export_s = time.perf_counter() - began
        report = qn_deploy.verify(folder, progress=progress)
    road_s = time.perf_counter() - began
    click.echo(str(report))
    left = sum(tensor.nbytes for name, tensor in compressed.exported.state_dict.items() if name not in compressed.weights)
    limits = (("capture and compress", compress_s, wanted.compress_s), ("whole road", road_s, wanted.road_s))
    rows = [
        Row("float model", size / MB, "MB"),
        Row("theory", build.manifest.theoretical_bytes / MB, "MB"),
        *(at_most(name, entry.bytes / MB, "MB", wanted.paper_mb) for name, entry in build.manifest.files.items()),
        Row("left float", left / MB, "MB"),
        *(Row(what, spent, "s") if limit is None else at_most(what, spent, "s", limit) for what, spent, limit in limits),
        Row("export", export_s - compress_s, "s"),
        Row("verify", road_s - export_s, "s"),
        Row("memory at the peak of the same road for one layer", tools / MB, "MB"),
        Row("memory at the peak", _peak() / MB, "MB"),
        at_most("capture and compress: memory beyond that of one layer, in float models", (compress_memory - tools) / size, "x", MEMORY),
        at_most("whole road: memory beyond that of one layer, in float models", (_peak() - tools) / size, "x", MEMORY),
        Row("checks that failed", sum(check.passed is False for check in report.checks), ""),
    ]
    sys.exit(finish(title, rows, options, json_file))


if __name__ == "__main__":
    main()
