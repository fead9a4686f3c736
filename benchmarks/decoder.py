"""A small decoder with its cache as inputs and outputs, trained on bytes of WikiText-2: what its tables write, token by token."""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from decoder_model import Decoder, Shape
from decoder_text import RealSteps, Step, Text, fit, logits_of, perplexity, written
from rows import Row, at_least, at_most, chosen, clock, finish, json_option, seed_option, skip
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from qn_deploy import noise
from qn_deploy.compression import CompressConfig, TuneConfig, compress, tune
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.export import export
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.graph.lifted import unlifted
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations, lower
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table
from qn_deploy.verification.ladder import verify

TITLE = "Decoder with a cache, bytes of WikiText-2"
ROOT = Path(__file__).resolve().parent.parent
TRAIN, TEST = "valid.txt", "test.txt"
PROMPT = 32  # bytes
TEXTS = 64  # of the test file, as long as the cache, for perplexity
CALIBRATION = 32  # batches of single steps
GOLDEN = 2  # steps that become the golden inputs
RECIPE = Recipe((Rule(Table(4), name="layers.*"), Rule(Int8())), title="decoder")


@dataclass(frozen=True)
class Writing:
    """What each program writes.

    Attributes:
        prompts: int64 [N, PROMPT].
        count: tokens written after each.
        cache: empty, of one text.
    """

    prompts: Tensor
    count: int
    cache: tuple[Tensor, ...]

    def by(self, step: Step) -> tuple[Tensor, Tensor]:
        """Tokens int64 [N, count] and their logits [N, count, tokens]."""
        pairs = [written(step, prompt, self.count, self.cache) for prompt in self.prompts]
        return torch.stack([tokens for tokens, _ in pairs]), torch.stack([logits for _, logits in pairs])


@click.command(help=__doc__)
@click.option(
    "--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared/data/wikitext2", help=f"Folder with {TRAIN} and {TEST}."
)
@click.option("--untied", is_flag=True, help="The head has a weight of its own.")
@click.option("--steps", default=1200, show_default=True, help="Of training.")
@click.option("--lr", default=4e-3, show_default=True, help="Of training, at its highest.")
@click.option("--noise", "rate", default=0.05, show_default=True, help="Rate of Quant-Noise.")
@click.option("--tune-steps", default=200, show_default=True, help="Of end-to-end tuning.")
@click.option("--prompts", default=16, show_default=True)
@click.option("--tokens", default=64, show_default=True, help="Written after each prompt.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(
    data: Path,
    untied: bool,
    steps: int,
    lr: float,
    rate: float,
    tune_steps: int,
    prompts: int,
    tokens: int,
    threads: int,
    seed: int,
    json_file: Path | None,
) -> None:
    if absent := [str(data / file) for file in (TRAIN, TEST) if not (data / file).exists()]:
        sys.exit(skip(TITLE, f"{', '.join(absent)} not found; give the folder with --data", json_file))
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    progress = clock()
    train, test = (Text.of(data / file) for file in (TRAIN, TEST))
    model = Decoder(Shape(tied=not untied))
    progress("training")
    begin = time.perf_counter()
    if rate:
        noise.attach(model, RECIPE, rate)
    fit(model.train(), train, steps, lr, seed)
    noise.remove(model.eval())
    rows = [at_most("training", (time.perf_counter() - begin) / 60, "minutes", 10)]

    progress("compressing")
    batches = list(RealSteps(model, train, CALIBRATION, seed))
    token, position, *cache = (each[:GOLDEN] for each in batches[0])
    whole = capture(model, (token, position, cache))
    small = compress(whole, RECIPE, batches, CompressConfig(seed=seed))
    progress("tuning")
    small = tune(small, whole, RealSteps(model, train, CALIBRATION, seed + 1), TuneConfig(steps=tune_steps))

    progress("reading the test text")
    texts, empty = test.spread(TEXTS, model.shape.length), model.empty(TEXTS)
    for name, program in (("float", whole), ("tables", small)):
        rows.append(Row(f"{name}: perplexity of a byte", perplexity(logits_of(_stepping(program.exported), texts, empty), texts), ""))

    writing = Writing(test.spread(prompts, PROMPT), tokens, model.empty(1))
    theirs, _ = writing.by(lambda inputs: tuple(pytree.tree_leaves(model(*inputs[:2], inputs[2:]))))
    with tempfile.TemporaryDirectory() as folder:
        for name, program, activations in (
            ("float", whole, Activations.NONE),
            ("tables, static", small, Activations.STATIC),
            ("tables, dynamic", small, Activations.DYNAMIC),
        ):
            progress(name)
            found = _measured(program, activations, writing, theirs, Path(folder) / "build")
            for row in found:
                progress(f"{name}: {row.name}: {row.value:,.6g} {row.unit}")  # the three take minutes each
            rows += [Row(f"{name}: {row.name}", row.value, row.unit, row.bar, row.met) for row in found]
    sys.exit(finish(TITLE, rows, chosen(), json_file))


def _measured(program: Program, activations: Activations, writing: Writing, theirs: Tensor, folder: Path) -> list[Row]:
    """One program as files: their bytes, whether they pass, and what they write beside the simulation, each other and the float model."""
    manifest = export(program, folder, ExportConfig(activations=activations.value)).manifest
    rows = [Row("float constants", manifest.float_bytes, "bytes"), Row("constants", manifest.theoretical_bytes, "bytes")]
    rows += [Row(file, entry.bytes, "bytes") for file, entry in manifest.files.items()]
    # A program without a compressed weight fails one check of rung 1, which says so.
    failed = [check for check in verify(folder).checks if check.passed is False and check.rung < 5 and (program.weights or check.rung > 1)]
    rows.append(at_most("checks of rungs 1-4 that fail", len(failed), "", 0))
    found = {}
    for file, entry in manifest.files.items():
        exporter = find_exporters()[entry.exporter]
        lowered = lower(program, exporter.forms(activations, exporter.options())[0]).exported
        simulation = IntegerReference(lowered, exporter.rules) if activations.is_static else _stepping(lowered)
        begin = time.perf_counter()
        found[entry.runtime] = writing.by(exporter.opened((folder / file).read_bytes(), {}))
        spent = time.perf_counter() - begin
        rows.append(Row(f"{entry.runtime}: a token", 1e3 * spent / len(writing.prompts) / (PROMPT + writing.count - 1), "ms"))
        rows += _alike(f"{entry.runtime} to its simulation", found[entry.runtime], writing.by(simulation))
        tokens, _ = found[entry.runtime]
        texts = f"{entry.runtime}: texts that are the float model's"
        equal = float((tokens == theirs).all(1).double().mean())
        rows.append(Row(texts, 100 * equal, "%") if program.weights else at_least(texts, 100 * equal, "%", 100))
        rows.append(Row(f"{entry.runtime}: tokens that are the float model's", 100 * float((tokens == theirs).double().mean()), "%"))
    (one, first), (other, second) = found.items()
    return rows + _alike(f"{one} to {other}", first, second)


def _alike(what: str, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> list[Row]:
    """Tokens and logits of two that write the same prompts on; logits count up to the first token that differs."""
    equal = one[0] == other[0]
    read = torch.cat([torch.ones_like(equal[:, :1]), equal[:, :-1]], 1).long().cumprod(1).bool()  # both have read the same so far
    return [
        Row(f"{what}: equal tokens", 100 * float(equal.double().mean()), "%"),
        Row(f"{what}: largest difference of logits after equal text", float((one[1] - other[1])[read].abs().max()), ""),
    ]


def _stepping(exported: ExportedProgram) -> Step:
    graph = unlifted(exported)
    return lambda inputs: graph(*inputs)


if __name__ == "__main__":
    main()
