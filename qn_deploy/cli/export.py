"""`qn-deploy export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qn_deploy.cli.options import PATH, ExportCommand, chosen_options
from qn_deploy.cli.progress import stages
from qn_deploy.targets import DEFAULT_TARGET, TARGETS

if TYPE_CHECKING:
    from qn_deploy.exporting.config import Scheme


@click.command("export", cls=ExportCommand)
@click.argument("model", type=PATH)
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default=DEFAULT_TARGET,
    show_default=True,
    help="Where the program will run; `qn-deploy targets` says what that decides.",
)
@click.option("--out", type=PATH, default=Path("build"), show_default=True, help="Folder for the files; made if it is missing.")
@click.option("--calibrate", "data", type=PATH, help="An .npz with one array for each input, for static int8 activations.")
@click.option(
    "--activations",
    type=click.Choice(["static", "static-qnnpack", "dynamic", "none"]),
    help="How activations are quantized; static-qnnpack wants one scale for each weight. Without it: static for a calibrated model, "
    "else dynamic.",
)
@click.option(
    "--centroid-range",
    type=click.IntRange(1, 127),
    metavar="N",
    help="Keep int8 weights within -N..N: 64 makes int8 sums exact on x86 processors without VNNI, at a small loss.",
)
@click.option("--allow-constant", is_flag=True, help="Write the files even if an output, or a channel of one, became constant.")
@click.option("--only", multiple=True, metavar="EXPORTER", help="Write for this exporter only; may be repeated.")
@click.pass_context
def command(
    context: click.Context,
    model: Path,
    target: str,
    out: Path,
    data: Path | None,
    activations: Scheme | None,
    centroid_range: int | None,
    allow_constant: bool,
    only: tuple[str, ...],
) -> None:
    """Write MODEL (a model.pt of qn_deploy.save) for each runtime that has an exporter, with manifest and golden vectors."""
    progress = stages()
    progress(f"reading {model}")
    from rich.console import Console

    from qn_deploy.exporting.config import ExportConfig
    from qn_deploy.exporting.export import export
    from qn_deploy.program.store import load

    program = load(model)
    if data is not None:
        from qn_deploy.compression.calibrate import calibrate
        from qn_deploy.program.batches import read_batches

        batches = read_batches(data, program)
        progress(f"calibrating with {data}")
        program = calibrate(program, batches)
    config = ExportConfig(target, activations, centroid_range, only, chosen_options(context), allow_constant)
    build = export(program, out, config, progress)
    progress("")
    Console().print(build)
    inexact = any(entry.inexact for entry in build.manifest.files.values())
    layers = f" --layers {shlex.quote(str(model))}" if inexact else ""  # what has no exact rule is judged by itself
    click.echo(f"\nnext: qn-deploy verify {shlex.quote(str(out))}{layers}")
