"""`qn-deploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qn_deploy.cli.following import quoted, tell_next
from qn_deploy.cli.options import PATH, ExportCommand, WholeNumber, chosen_options, json_option
from qn_deploy.cli.progress import bars, stages
from qn_deploy.cli.source_options import source_options
from qn_deploy.errors import ToolchainError
from qn_deploy.targets import DEFAULT_TARGET, TARGETS

if TYPE_CHECKING:
    from qn_deploy.cli.source_options import Given
    from qn_deploy.exporting.config import Scheme


@click.command("export", cls=ExportCommand)
@source_options
@click.option(
    "--target",
    type=click.Choice(list(TARGETS)),
    default=DEFAULT_TARGET,
    show_default=True,
    help="Where the program will run; `qn-deploy targets` says what that decides.",
)
@click.option("--out", type=PATH, default=Path("build"), show_default=True, help="Folder for the files; made if it is missing.")
@click.option(
    "--activations",
    type=click.Choice(["static", "static-qnnpack", "dynamic", "none"]),
    help="How activations are quantized; static-qnnpack wants one scale for each weight. Without it: static for a calibrated model, "
    "else dynamic.",
)
@click.option(
    "--centroid-range",
    type=WholeNumber(1, 127),
    metavar="N",
    help="Keep int8 weights within -N..N: 64 makes int8 sums exact on x86 processors without VNNI, at a small loss.",
)
@click.option("--allow-constant", is_flag=True, help="Write the files even if an output, or a channel of one, became constant.")
@click.option("--only", multiple=True, metavar="EXPORTER", help="Write for this exporter only; may be repeated.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    given: Given,
    target: str,
    out: Path,
    activations: Scheme | None,
    centroid_range: int | None,
    allow_constant: bool,
    only: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write SOURCE for each runtime that has an exporter, with manifest and golden vectors.

    SOURCE is the model.pt of `qn-deploy compress`. A .pt2, or package.module:function, is compressed on the way, by the recipe that its
    operators ask for.

    \b
    Examples:
      qn-deploy export model.pt --target arm --out build
      qn-deploy export net.pt2 --calibrate data.npz
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress(f"reading {given.source}")
    from rich.console import Console

    from qn_deploy.exporting.config import ExportConfig
    from qn_deploy.exporting.export import export
    from qn_deploy.exporting.exporter import missing, registered
    from qn_deploy.exporting.manifest import REPORT
    from qn_deploy.report.facts import gather
    from qn_deploy.report.page import write_page
    from qn_deploy.sources.ready import ready

    program, batches = given.open()
    with bars() as bar:
        program, note = ready(given.source, program, batches, progress, bar)
    config = ExportConfig(target, activations, centroid_range, only, chosen_options(context), allow_constant)
    build = export(program, out, config, progress)
    notes = [note] if note else []
    progress(f"drawing {REPORT}")
    try:
        write_page(gather(out, program, None), out / REPORT)
    except ToolchainError as error:
        notes.append(f"there is no {REPORT}: {error}")
    progress("")
    if as_json:
        click.echo(build.manifest.to_json())
        return
    Console().print(build)
    left_out = {exporter.filename: missing(exporter) for exporter in registered().values()} if not only else {}
    notes += [f"there is no {name}: {reason}" for name, reason in left_out.items() if reason]
    for line in notes:
        click.echo(f"note: {line}")
    inexact = any(entry.inexact for entry in build.manifest.files.values())
    layers = f" --layers {quoted(given.source)}" if inexact and not note else ""  # what has no exact rule is judged by itself
    tell_next(f"qn-deploy verify {quoted(out)}{layers}")
