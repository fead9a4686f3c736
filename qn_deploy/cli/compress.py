"""`qn-deploy compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qn_deploy.cli.options import MINUTES, PATH, SIZE, json_option
from qn_deploy.cli.progress import bars, stages
from qn_deploy.cli.saving import save_and_tell
from qn_deploy.cli.source_options import source_options

if TYPE_CHECKING:
    from qn_deploy.cli.source_options import Given


@click.command("compress")
@source_options
@click.option("--recipe", metavar="NAME|FILE.toml", help="Which weight becomes what; without it, chosen by the operators (auto).")
@click.option("--max-size", type=SIZE, metavar="SIZE", help="Lose the least within this size of the file: 1.5MB. It is never larger.")
@click.option("--size-of", metavar="EXPORTER", help="The size is that of this exporter's file (onnx, executorch) instead of model.pt.")
@click.option("--max-drop", type=float, metavar="POINTS", help="The smallest file that loses at most this: points of --metric, or dB.")
@click.option(
    "--metric",
    metavar="MODULE:FUNCTION",
    help="Takes a function that runs the model, gives points of each sample or of all; more is better.",
)
@click.option(
    "--rate", default=0.0, metavar="NUMBER", help="Choose tables that a .pte stores in fewer bytes: 0.3 for a little loss, 0 for none."
)
@click.option("--tune", "minutes", type=MINUTES, metavar="TIME", help="Then fine-tune against the float model, without labels: 10min.")
@click.option("--data", "tuning", metavar="DATA", help="Inputs to tune with, of the kinds of --calibrate; without it, those.")
@click.option(
    "--tune-blocks",
    "block_steps",
    type=click.IntRange(0),
    default=0,
    metavar="STEPS",
    help="Begin --tune with blocks of layers, one after the other, so many steps each: 32 for little data.",
)
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@click.option("--out", type=PATH, default=Path("model.pt"), show_default=True, help="The file to write.")
@json_option
def command(
    given: Given,
    recipe: str | None,
    max_size: int | None,
    size_of: str | None,
    max_drop: float | None,
    metric: str | None,
    rate: float,
    minutes: float | None,
    tuning: str | None,
    block_steps: int,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Make a trained network small: SOURCE becomes a model.pt with tables or integers in place of float weights.

    With a budget, what each form of each weight does to the outputs is measured, and the best choice within it is found.

    SOURCE is a .pt2 of torch.export.save, a float model.pt, or package.module:function of your own code, which gives the module.

    \b
    Examples:
      qn-deploy compress net.pt2 --calibrate data.npz --max-size 1.5MB
      qn-deploy compress my_net:build --weights net.safetensors --calibrate photos/ --preprocess 'resize=256 crop=224'
      qn-deploy compress net.pt2 --calibrate data.npz --recipe my.toml --tune 10min --data train.npz
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress(f"reading {given.source}")

    from qn_deploy.compression.plan import file_bytes
    from qn_deploy.compression.request import Request, fulfil
    from qn_deploy.exporting.sizes import written_size
    from qn_deploy.recipe.named import recipe_of
    from qn_deploy.sources.code import function_of

    request = Request(
        recipe=None if recipe in (None, "auto") else recipe_of(recipe),
        max_size=max_size,
        max_drop=max_drop,
        metric=None if metric is None else function_of(metric),
        size=file_bytes if size_of is None else written_size(size_of),
        rate=rate,
        minutes=minutes,
        block_steps=block_steps,
        seed=seed,
    )
    program, batches = given.open()
    more = given.more(tuning, program) if tuning is not None else None
    with bars() as bar:
        small = fulfil(program, request, batches, more, progress, bar)
    save_and_tell(small, out, as_json, progress)
