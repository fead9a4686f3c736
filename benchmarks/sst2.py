"""SST-2 by a small Transformer trained from scratch: Quant-Noise, then tables and end-to-end fine-tuning on unlabelled text."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import click
import text
import torch
from rows import at_least, chosen, clock, finish, json_option, over_seeds, seed_option, skip
from torch import nn

from qn_deploy import noise
from qn_deploy.compression import CompressConfig, TuneConfig, compress, tune
from qn_deploy.exporting.describe import float_bytes, theoretical_bytes
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table

TITLE = "SST-2, 2-layer Transformer"
ROOT = Path(__file__).resolve().parent.parent
FILES = ("train.tsv", "dev.tsv", "test.tsv")
LOSS, SMALLER = 0.7, 24.0  # points of accuracy; float bytes over ours
TUNING_BATCH, TUNING_LR = 32, 6e-3

SHAPES = ({0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=text.LONGEST)},)

# Nearly all of the loss comes from the word embedding, so it gets the codebooks that attention saves by blocks of 8.
RECIPE = Recipe(
    (
        Rule(Table(8, codebooks=12), name="word_embedding*"),
        Rule(Table(8), name="layers.*"),
        Rule(Int8()),
    ),
    title="sst2",
)


@click.command(help=__doc__)
@click.option(
    "--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data" / "sst2", help=f"Folder with {', '.join(FILES)}."
)
@click.option("--seeds", default=3, show_default=True, help="How many, from --seed on.")
@click.option("--width", default=128, show_default=True, help="Of the Transformer.")
@click.option("--epochs", default=4, show_default=True, help="Of training; the best on dev is kept.")
@click.option("--lr", default=1.5e-3, show_default=True, help="Of training.")
@click.option("--noise", "rate", default=0.1, show_default=True, help="Rate of Quant-Noise.")
@click.option("--tune-steps", default=200, show_default=True, help=f"Of end-to-end fine-tuning, {TUNING_BATCH} sentences each.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(
    data: Path,
    seeds: int,
    width: int,
    epochs: int,
    lr: float,
    rate: float,
    tune_steps: int,
    threads: int,
    seed: int,
    json_file: Path | None,
) -> None:
    options = chosen()
    if absent := [str(data / file) for file in FILES if not (data / file).exists()]:
        sys.exit(skip(TITLE, f"{', '.join(absent)} not found; give the folder with --data", json_file))
    torch.set_num_threads(threads)
    progress = clock()
    labelled = [text.lines(data / file) for file in FILES]
    numbers = text.vocabulary(sentence for sentence, _ in labelled[0])
    train, dev, test = (text.encode(lines, numbers) for lines in labelled)
    found: dict[str, list[float]] = defaultdict(list)

    def trained(seed: int, p: float) -> nn.Module:
        torch.manual_seed(seed)
        model = text.TextClassifier(len(numbers) + 2, width)
        if p:
            noise.attach(model, RECIPE, p, noise.Options(product="exact", seed=seed))
        text.fit(model, train, dev, epochs, lr, seed, lambda: noise.refresh(model) if p else None)
        noise.remove(model)
        return model

    def tuned(program: Program, teacher: Program, seed: int) -> Program:
        batches = [(batch.ids,) for batch in train.batches(TUNING_BATCH, seed)]
        return tune(program, teacher, batches, TuneConfig(steps=tune_steps, lr=TUNING_LR, scale_lr=TUNING_LR, rest_lr=TUNING_LR))

    for run in range(seed, seed + seeds):
        for name, p in (("plain", 0.0), ("Quant-Noise", rate)):
            program = capture(trained(run, p), (test.ids[:2],), dynamic_shapes=SHAPES)
            compressed = compress(program, RECIPE, config=CompressConfig(seed=run))
            stages = {"float": program, "tables": compressed, "tables, tuned": tuned(compressed, program, run)}
            for stage, each in stages.items():
                student = unlifted(each.exported)
                found[f"{name}, {stage}"].append(test.accuracy(lambda ids, student=student: student(ids)[0]))
                progress(f"seed {run}: {name}, {stage}: {found[f'{name}, {stage}'][-1]:.2f} %")
            found["smaller"].append(float_bytes(program) / theoretical_bytes(compressed))

    smaller = found.pop("smaller")
    rows = [row for name, values in found.items() for row in over_seeds(name, values, "%")]
    ours, theirs = mean(found["Quant-Noise, tables, tuned"]), mean(found["plain, float"])
    rows += [
        at_least("Quant-Noise, tables, tuned: mean above plain float", ours - theirs, "points", -LOSS),
        at_least("float constants / ours", min(smaller), "x", SMALLER),
    ]
    sys.exit(finish(TITLE, rows, options, json_file))


if __name__ == "__main__":
    main()
