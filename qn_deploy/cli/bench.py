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
@click.option("--model", type=PATH, help="The model.pt that was exported: float and the runtimes' own int8 are measured too.")
@click.option("--batch", "batches", type=WholeNumber(1, 4096), multiple=True, default=(1,), show_default=True, help="Repeat for others.")
@click.option("--rounds", type=WholeNumber(4, 100_000), default=40, show_default=True, help="How often each program runs.")
@click.option("--plot", type=PATH, metavar="FILE.svg", help="Also draw the times.")
@json_option
def command(build: Path, model: Path | None, batches: tuple[int, ...], rounds: int, plot: Path | None, as_json: bool) -> None:
    """Time the files of the folder BUILD on this machine, beside the same program in dense int8, in float, and as the runtimes' own tools
    quantize it.

    All programs run in turn, so that all see the same noise: trust the ratios.

    \b
    Examples:
      qn-deploy bench build
      qn-deploy bench build --model model.pt --batch 1 --batch 16 --plot times.svg
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress(f"reading {build}")
    from rich.console import Console

    from qn_deploy.bench.programs import bench
    from qn_deploy.files import write_atomic
    from qn_deploy.program.store import load
    from qn_deploy.report.charts import times_chart
    from qn_deploy.report.tables import times_table

    found = bench(build, load(model) if model is not None else None, batches, rounds, progress)
    if plot is not None:
        progress(f"drawing {plot}")
        write_atomic(plot, times_chart(found).encode())
    progress("")
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=1))
    else:
        Console().print(times_table(str(build), found))
        tell_next(f"qn-deploy report {quoted(build)}")
