"""`qn-deploy bench`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from qn_deploy.cli.following import quoted, tell_next
from qn_deploy.cli.options import PATH, WholeNumber, json_option
from qn_deploy.cli.progress import stages


@click.command("bench")
@click.argument("build", type=PATH)
@click.option("--model", type=PATH, help="The model.pt that was exported: the float model is measured too.")
@click.option("--batch", "batches", type=WholeNumber(1, 4096), multiple=True, default=(1,), show_default=True, help="Repeat for others.")
@click.option("--rounds", type=WholeNumber(4, 100_000), default=40, show_default=True, help="How often each program runs.")
@json_option
def command(build: Path, model: Path | None, batches: tuple[int, ...], rounds: int, as_json: bool) -> None:
    """Time the files of the folder BUILD on this machine, beside the same program in dense int8 and in float.

    All programs run in turn, so that all see the same noise: trust the ratios.

    \b
    Examples:
      qn-deploy bench build
      qn-deploy bench build --model model.pt --batch 1 --batch 16 --json
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress(f"reading {build}")
    from rich.console import Console

    from qn_deploy.bench.programs import bench
    from qn_deploy.program.store import load
    from qn_deploy.report.tables import times_table

    found = bench(build, load(model) if model is not None else None, batches, rounds, progress)
    progress("")
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=1))
    else:
        Console().print(times_table(str(build), found))
        tell_next(f"qn-deploy report {quoted(build)}")
