"""Networks in our forms, beside float and what other tools make of them: bytes, memory, load, time, and what is left of the outputs.

All programs of a network run in turn in one process, on one thread. Ways that do not take a network are named with their reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log10
from pathlib import Path

import click
import torch
from against_ways import Way, ways
from budget_networks import NETWORKS, Judge, Loaded, Measured
from minilm import recipe_5mb
from models import Encoder
from rich.console import Console
from rich.table import Table
from rows import Row, chosen, clock, json_option, seed_option, write
from torch import Tensor, nn

import qn_deploy
from qn_deploy.bench.measure import Times, measure
from qn_deploy.compression.metric import Run
from qn_deploy.errors import first_line
from qn_deploy.graph.lifted import unlifted
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Batch
from qn_deploy.recipe import Int4, Int8, Recipe, Rule, compressed_conv_net, compressed_transformer, conv_net, transformer

TITLE = "Beside other tools"
ROOT = Path(__file__).resolve().parent.parent
TOKENS, WIDTH, WORDS, SAMPLES = 64, 384, 8192, 8  # of the networks with random weights
BATCHES = (1, 32)
MB = 2**20


@dataclass(frozen=True)
class Workload:
    """A network to compare on.

    Attributes:
        points: what a sample's points are called.
        missing: why it can't be measured here, or None.
        load: from the data's folder, at most so many test samples, and the seed.
        activations: of our files.
        tables: recipes of ours with tables, by name.
        tokens: of each sample when it is timed; 0 for images.
    """

    points: str
    missing: Callable[[Path], str | None]
    load: Callable[[Path, int, int], Loaded]
    activations: Activations
    tables: dict[str, Recipe]
    tokens: int = 0


class Decoder(nn.Module):
    """A Llama of 6 layers with random weights, without a cache: ids int64 [N, T] -> logits [N, T, words]."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": WIDTH, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6, "vocab_size": WORDS}
        self.model = LlamaForCausalLM(LlamaConfig(**sizes, use_cache=False))

    def forward(self, ids: Tensor) -> Tensor:
        """Ids int64 [N, T] -> logits [N, T, words]."""
        logits: Tensor = self.model(input_ids=ids).logits
        return logits


def _random(make: Callable[[], nn.Module], inputs: Callable[[], Tensor]) -> Callable[[Path, int, int], Loaded]:
    """A network with random weights; a sample's points are the cosine of its outputs to the float ones."""

    def load(data: Path, count: int, seed: int) -> Loaded:
        torch.manual_seed(seed)
        model = make().eval()
        batches: list[Batch] = [(inputs(),) for _ in range(SAMPLES)]
        tests = [inputs() for _ in range(4)]
        program = qn_deploy.capture(model, batches[0])
        with torch.no_grad():
            whole = [unlifted(program.exported)(x)[0].flatten(1) for x in tests]

        def judge(part: slice) -> Judge:
            def measured(run: Run) -> Measured:
                found = [torch.cosine_similarity(run(x)[0].flatten(1), y).double() for x, y in zip(tests, whole, strict=True)]
                return Measured(100 * torch.cat(found), 0.0)

            return measured

        return Loaded(model, program, batches, judge)

    return load


def _nothing_missing(data: Path) -> None:
    return None


def _known(name: str, activations: Activations, tables: dict[str, Recipe], tokens: int = 0) -> Workload:
    network = NETWORKS[name]
    return Workload(network.points, network.missing, network.load, activations, tables, tokens)


CONV = {"tables": conv_net(), "tables, K=16": compressed_conv_net()}
TEXT = {"tables": transformer(), "tables, K=16, d=2": compressed_transformer(2), "tables, K=16, d=4": compressed_transformer(4)}
STATIC, DYNAMIC = Activations.STATIC, Activations.DYNAMIC
COSINE = "cosine to float"
WORKLOADS = {
    "minilm": _known("minilm", DYNAMIC, {**TEXT, "tables": recipe_5mb()}, TOKENS),
    "efficientnet_lite0": _known("efficientnet_lite0", STATIC, CONV),
    "resnet20": _known("resnet20", STATIC, CONV),
    "encoder": Workload(COSINE, _nothing_missing, _random(Encoder, lambda: torch.randn(SAMPLES, TOKENS, WIDTH)), DYNAMIC, TEXT, TOKENS),
    "decoder": Workload(COSINE, _nothing_missing, _random(Decoder, lambda: torch.randint(WORDS, (SAMPLES, TOKENS))), DYNAMIC, TEXT, TOKENS),
}


@dataclass(frozen=True)
class Found:
    """What was measured of one form."""

    way: Way
    points: float
    sqnr_db: float
    times: dict[int, Times]


@click.command(help=__doc__)
@click.option("--network", "names", type=click.Choice([*WORKLOADS]), multiple=True, default=[*WORKLOADS], show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with the networks' data.")
@click.option("--tests", "count", default=1000, show_default=True, help="Test samples, at most.")
@click.option(
    "--leave-out",
    "left_out",
    metavar="TEXT",
    multiple=True,
    help="Forms whose name holds this; coremltools takes a minute for each large layer.",
)
@click.option("--rounds", default=24, show_default=True, help="How often each program runs.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE.svg", help="Also draw bytes and points.")
@seed_option
@json_option
def main(
    names: tuple[str, ...],
    data: Path,
    count: int,
    left_out: tuple[str, ...],
    rounds: int,
    plot: Path | None,
    seed: int,
    json_file: Path | None,
) -> None:
    torch.set_num_threads(1)
    progress, found = clock(), {}
    for name in names:
        if reason := WORKLOADS[name].missing(data):
            progress(f"{name} is left out: {reason}")
            continue
        found[name] = _measured(name, WORKLOADS[name], data, count, left_out, rounds, seed, progress)
        Console().print(_table(name, WORKLOADS[name], found[name]))
    write(TITLE, [row for name, each in found.items() for row in _rows(name, WORKLOADS[name], each)], chosen(), json_file)
    if plot is not None:
        _draw(found, plot)


def _measured(
    name: str,
    workload: Workload,
    data: Path,
    count: int,
    left_out: tuple[str, ...],
    rounds: int,
    seed: int,
    progress: Callable[[str], None],
) -> list[Found]:
    progress(f"{name}: loading the network and its data")
    loaded = workload.load(data, count, seed)
    judge = loaded.judge(slice(None))
    _, whole = _judged(judge, unlifted(loaded.program.exported))
    recipes = {"int8": Recipe((Rule(Int8()),)), "int4": Recipe((Rule(Int4()),)), **workload.tables}
    made = []
    for title, make in ways(loaded.program, loaded.module, loaded.batches, workload.activations, recipes, seed):
        if any(text in title for text in left_out):
            continue
        progress(f"{name}: {title}")
        try:
            way = make()
            points, outputs = _judged(judge, way.run)
        except Exception as error:  # other tools raise many classes, and what they do not take is a result
            progress(f"{name}: {title} is left out: {type(error).__name__}: {first_line(error, 'no message')[:200]}")
            continue
        made.append((way, float(points.points.mean()), _sqnr(whole, outputs)))
    progress(f"{name}: all in turn")
    timed = [way.subject for way, _, _ in made if way.subject is not None]
    inputs = [_of_size(loaded.batches[0], size, workload.tokens) for size in BATCHES]
    with torch.no_grad():
        times = iter(measure(timed, inputs, rounds))
    by_subject = {(batch, subject.name, subject.exporter): next(times) for batch in BATCHES for subject in timed}
    return [
        Found(way, points, sqnr, {batch: by_subject[batch, way.name, way.subject.exporter] for batch in BATCHES if way.subject is not None})
        for way, points, sqnr in made
    ]


@torch.no_grad()
def _judged(judge: Judge, run: Run) -> tuple[Measured, Tensor]:
    """What the test samples say, and the first output of all of them."""
    seen = []

    def recording(*inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = run(*inputs)
        seen.append(outputs[0].flatten())
        return outputs

    return judge(recording), torch.cat(seen)


def _sqnr(whole: Tensor, found: Tensor) -> float:
    noise = float((found - whole).double().square().mean())
    return 10 * log10(float(whole.double().square().mean()) / noise) if noise else 200.0


def _of_size(batch: Batch, size: int, tokens: int) -> Batch:
    """A batch of so many samples, each cut or repeated to so many tokens."""
    found = []
    for tensor in batch:
        longer = torch.cat([tensor] * -(-tokens // tensor.shape[1]), 1)[:, :tokens] if tokens else tensor
        found.append(torch.cat([longer] * -(-size // len(longer)))[:size].contiguous())
    return tuple(found)


def _columns(workload: Workload, found: Found) -> list[tuple[str, float | None, str]]:
    """(what, value, unit) of a form."""
    one, many = (found.times.get(batch) for batch in BATCHES)
    return [
        ("file", found.way.bytes / MB, "MB"),
        ("load", one.load_ms if one else None, "ms"),
        ("resident", one.resident_mb if one else None, "MB"),
        (f"batch {BATCHES[0]}", one.p50_ms if one else None, "ms"),
        (f"batch {BATCHES[1]}", many.p50_ms if many else None, "ms"),
        ("SQNR", found.sqnr_db, "dB"),
        (workload.points, found.points, "%"),
    ]


def _table(name: str, workload: Workload, found: list[Found]) -> Table:
    columns = [f"{what}, {unit}" for what, _, unit in _columns(workload, found[0])]
    table = Table("where", "what", *columns, title=name)
    for each in found:
        values = ("" if value is None else f"{value:,.4g}" for _, value, _ in _columns(workload, each))
        table.add_row(each.way.where, each.way.name, *values)
    return table


def _rows(name: str, workload: Workload, found: list[Found]) -> list[Row]:
    return [
        Row(f"{name}: {each.way.where}, {each.way.name}: {what}", value, unit)
        for each in found
        for what, value, unit in _columns(workload, each)
        if value is not None
    ]


def _draw(found: dict[str, list[Found]], file: Path) -> None:
    """A panel for each network: points over bytes, ours filled."""
    from matplotlib.figure import Figure

    figure = Figure((6.4, 3.6 * len(found)), layout="constrained")
    panels = figure.subplots(len(found), squeeze=False)[:, 0]
    for axes, (name, each) in zip(panels, found.items(), strict=True):
        for where, colour in zip(dict.fromkeys(one.way.where for one in each), ("tab:blue", "tab:orange", "tab:green"), strict=False):
            for is_ours, marker in ((True, "o"), (False, "x")):
                chosen = [one for one in each if one.way.where == where and one.way.is_ours is is_ours]
                label = f"{where}, {'ours' if is_ours else 'others'}"
                axes.scatter([one.way.bytes / MB for one in chosen], [one.points for one in chosen], c=colour, marker=marker, label=label)
        axes.set(xscale="log", xlabel="MB", ylabel=f"{WORKLOADS[name].points}, %", title=name)
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    main()
