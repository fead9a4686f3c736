"""`qn-deploy compress`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qn_deploy.cli.options import MINUTES, PATH, json_option
from qn_deploy.cli.progress import bars, stages
from qn_deploy.cli.source_options import source_options

if TYPE_CHECKING:
    from qn_deploy.cli.source_options import Given


@click.command("compress")
@source_options
@click.option("--recipe", metavar="NAME|FILE.toml", help="Which weight becomes what; without it, chosen by the operators (auto).")
@click.option("--tune", "minutes", type=MINUTES, metavar="TIME", help="Then fine-tune against the float model, without labels: 10min.")
@click.option("--data", "tuning", metavar="DATA", help="Inputs to tune with, of the kinds of --calibrate; without it, those.")
@click.option("--seed", default=0, show_default=True, help="Of everything random.")
@click.option("--out", type=PATH, default=Path("model.pt"), show_default=True, help="The file to write.")
@json_option
def command(
    given: Given,
    recipe: str | None,
    minutes: float | None,
    tuning: str | None,
    seed: int,
    out: Path,
    as_json: bool,
) -> None:
    """Make a trained network small: SOURCE becomes a model.pt with tables or integers in place of float weights.

    SOURCE is a .pt2 of torch.export.save, a float model.pt, or package.module:function of your own code, which gives the module.

    \b
    Examples:
      qn-deploy compress net.pt2 --calibrate data.npz
      qn-deploy compress my_net:build --weights net.safetensors --calibrate photos/ --preprocess 'resize=256 crop=224'
      qn-deploy compress net.pt2 --calibrate data.npz --recipe my.toml --tune 10min --data train.npz
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress(f"reading {given.source}")
    from rich.console import Console

    from qn_deploy.compression.request import Request, fulfil
    from qn_deploy.program.store import save
    from qn_deploy.recipe.named import recipe_of
    from qn_deploy.report.compressed import Compressed

    chosen = None if recipe in (None, "auto") else recipe_of(recipe)
    program, batches = given.open()
    more = given.more(tuning, program) if tuning is not None else None
    with bars() as bar:
        small = fulfil(program, Request(chosen, minutes, seed), batches, more, progress, bar)
    progress(f"saving {out}")
    save(small, out)
    progress("")
    result = Compressed.of(small, out)
    if as_json:
        click.echo(result.to_json())
        return
    Console().print(result)
    click.echo(f"\nnext: qn-deploy inspect {shlex.quote(str(out))}")
    click.echo(f"      qn-deploy export {shlex.quote(str(out))} --target arm --out build")
