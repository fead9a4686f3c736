"""The command line. Torch and the runtimes are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from qn_deploy.errors import QnDeployError
from qn_deploy.targets import TARGETS

PATH = click.Path(path_type=Path)


class UserError(click.ClickException):
    """Shown as one line, `Error: ...`."""

    exit_code = 2


class Commands(click.Group):
    """Errors that a user can act on are one line and exit code 2; a traceback is a bug of ours."""

    def invoke(self, context: click.Context) -> Any:
        """Runs the command."""
        try:
            return super().invoke(context)
        except QnDeployError as error:
            raise UserError(str(error)) from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qn-deploy")
def main() -> None:
    """Turns models trained with Quant-Noise into small, verified programs for phones and edge boards.

    Start with: qn-deploy demo
    """


@main.command()
@click.argument("model", type=PATH)
@click.option("--target", type=click.Choice(list(TARGETS)), default="arm", show_default=True, help="Where the program will run.")
@click.option("--out", type=PATH, default=Path("build"), show_default=True, help="Folder for the files; made if it is missing.")
@click.option("--calibrate", type=PATH, help="An .npz with one array for each input, for static int8 activations.")
@click.option(
    "--activations",
    type=click.Choice(["static", "static-qnnpack", "dynamic", "none"]),
    help="How activations are quantized; static-qnnpack wants one scale for each weight. Without it: static with calibration data, "
    "else dynamic.",
)
@click.option(
    "--centroid-range",
    type=click.IntRange(1, 127),
    metavar="N",
    help="Keep int8 weights within -N..N: 64 makes int8 sums exact on x86 processors without VNNI, at a small loss.",
)
@click.option("--shell", is_flag=True, help="onnx: also write a shell and a sidecar with the tables, which take less memory to load.")
@click.option("--allow-unfused", is_flag=True, help="onnx: write the file even if onnxruntime would run a layer in float.")
@click.option("--only", multiple=True, metavar="EXPORTER", help="Write for this exporter only (onnx, executorch); may be repeated.")
def export(
    model: Path,
    target: str,
    out: Path,
    calibrate: Path | None,
    activations: str | None,
    centroid_range: int | None,
    shell: bool,
    allow_unfused: bool,
    only: tuple[str, ...],
) -> None:
    """Write MODEL (a model.pt of qn_deploy.save) as .onnx and .pte, with manifest and golden vectors."""
    progress = _progress()
    progress(f"reading {model}")
    from dataclasses import replace

    from rich.console import Console

    from qn_deploy.program import build
    from qn_deploy.program.calibration import load_calibration
    from qn_deploy.program.exporter import Options
    from qn_deploy.program.lower import Activations, choose_activations
    from qn_deploy.program.narrow import narrow
    from qn_deploy.program.store import load
    from qn_deploy.report.tables import print_build

    program = load(model)
    if calibrate is not None:
        program = replace(program, calibration=load_calibration(calibrate, program))
    scheme = choose_activations(program, None if activations is None else Activations(activations))
    if centroid_range is not None:
        program = narrow(program, centroid_range)
    options = Options(allow_unfused, shell)
    manifest = build.export(program, scheme, out, target, only or TARGETS[target].exporters, progress, options)
    progress("")
    print_build(Console(), manifest, out)
    click.echo(f"\nnext: qn-deploy verify {shlex.quote(str(out))}")


@main.command()
@click.argument("build", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Fail where the loss of quantization is larger: least SQNR to the float model.")
@click.pass_context
def verify(context: click.Context, build: Path, as_json: bool, min_sqnr: float | None) -> None:
    """Check the files of the folder BUILD on the real runtimes. Exit code 0: all passed, 1: not."""
    progress = _progress()
    progress(f"reading {build}")
    from rich.console import Console

    from qn_deploy.report.tables import print_report
    from qn_deploy.verify.ladder import verify as climb

    report = climb(build, min_sqnr, progress)
    progress("")
    if as_json:
        checks = [asdict(check) for check in report.checks]
        click.echo(json.dumps({"folder": report.folder, "passed": report.passed, "checks": checks}, indent=1))
    else:
        print_report(Console(), report)
    context.exit(0 if report.passed else 1)


@main.command()
@click.argument("model", type=PATH)
def inspect(model: Path) -> None:
    """Show what MODEL (a model.pt) holds: each compressed weight, its tables and bytes, and what was left."""
    from rich.console import Console

    from qn_deploy.program.build import describe
    from qn_deploy.program.store import load
    from qn_deploy.report.tables import print_left, print_weights

    program = load(model)
    print_weights(Console(), describe(program), str(model))
    print_left(Console(), program.left)


@main.command()
@click.option("--out", type=PATH, default=Path("build/demo"), show_default=True, help="Folder for the files.")
@click.pass_context
def demo(context: click.Context, out: Path) -> None:
    """Train, compress, export and verify a small network on scikit-learn's digits; about a minute."""
    progress = _progress()
    progress("loading torch")
    from qn_deploy.demo import run

    context.exit(0 if run(out, progress) else 1)


def _progress() -> Callable[[str], None]:
    """A function that tells, on standard error, when a stage begins and how long the last one took; "" ends the last stage."""
    running: list[tuple[str, float]] = []

    def tell(stage: str) -> None:
        if running:
            name, start = running.pop()
            click.echo(f"  {name} ({time.perf_counter() - start:.1f} s)", err=True)
        if stage:
            running.append((stage, time.perf_counter()))

    return tell
