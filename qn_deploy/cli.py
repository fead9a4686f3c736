"""The command line. Torch and the runtimes are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import click

from qn_deploy.errors import InputError, QnDeployError
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
        except BrokenPipeError:  # the reader of our output has seen enough: click ends quietly
            raise
        except OSError as error:  # a full disk, a folder that is not ours: in the cache or among the temporary files
            place = error.filename or "a file"
            raise UserError(f"{place}: {error.strerror or error}; TMPDIR and XDG_CACHE_HOME choose other folders") from None


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
@click.option(
    "--executorch-form",
    type=click.Choice(["delegate", "graph"]),
    default="delegate",
    show_default=True,
    help="executorch: tables that our delegate expands when it loads, beside a container for apps without native code of ours; or lookups "
    "in the graph, which take the least memory, need float activations, and are slow.",
)
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
    executorch_form: Literal["delegate", "graph"],
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
    if activations is None and executorch_form == "graph":
        activations = "none"
    scheme = choose_activations(program, None if activations is None else Activations(activations))
    if centroid_range is not None:
        program = narrow(program, centroid_range)
    options = Options(allow_unfused, shell, executorch_form)
    manifest = build.export(program, scheme, out, target, only or TARGETS[target].exporters, progress, options)
    progress("")
    print_build(Console(), manifest, out)
    layers = f" --layers {shlex.quote(str(model))}" if manifest.inexact else ""  # what has no exact rule is judged by itself
    click.echo(f"\nnext: qn-deploy verify {shlex.quote(str(out))}{layers}")


@main.command()
@click.argument("build", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Fail where the loss of quantization is larger: least SQNR to the float model.")
@click.option(
    "--device",
    "names",
    multiple=True,
    metavar="DEVICE",
    help="Run the files there too: qemu[:CPU], adb[:SERIAL], ssh:HOST; `qn-deploy devices` lists them. May be repeated.",
)
@click.option("--layers", type=PATH, metavar="MODEL", help="Judge each layer by itself too; MODEL is the model.pt that was exported.")
@click.pass_context
def verify(context: click.Context, build: Path, as_json: bool, min_sqnr: float | None, names: tuple[str, ...], layers: Path | None) -> None:
    """Check the files of the folder BUILD on the real runtimes. Exit code 0: all passed, 1: not."""
    progress = _progress()
    progress(f"reading {build}")
    from rich.console import Console

    from qn_deploy.report.tables import print_report
    from qn_deploy.verify.devices.find import CPU, open_device
    from qn_deploy.verify.ladder import verify as climb

    devices = tuple(open_device(name) for name in names if name != CPU)  # this machine runs them anyway
    report = climb(build, min_sqnr, progress, devices)
    if layers is not None:
        from qn_deploy.verify.layers import check_layers

        report = check_layers(report, layers, devices, progress)
    progress("")
    if as_json:
        checks = [asdict(check) for check in report.checks]
        click.echo(json.dumps({"folder": report.folder, "passed": report.passed, "checks": checks}, indent=1))
    else:
        print_report(Console(), report)
    context.exit(0 if report.passed else 1)


@main.group(invoke_without_command=True)
@click.pass_context
def devices(context: click.Context) -> None:
    """List the devices that can run the files, and what is missing for the others."""
    if context.invoked_subcommand is None:
        from rich.console import Console

        from qn_deploy.report.tables import print_devices
        from qn_deploy.verify.devices.find import list_devices

        print_devices(Console(), list_devices())


@devices.command()
@click.argument("kind", type=click.Choice(["qemu", "adb", "ssh"]))
def setup(kind: str) -> None:
    """Make the bundle that devices run: the runtimes for 64-bit ARM. For qemu, fetch qemu as well.

    Debian packages and wheels go to the cache folder; no root is needed.
    """
    from qn_deploy.verify.devices.bundle import build_bundle

    progress = _progress()
    folder = build_bundle(qemu=kind == "qemu", progress=progress)
    progress("")
    click.echo(f"{folder}\nnext: qn-deploy verify build --device {kind}{':HOST' if kind == 'ssh' else ''}")


@main.command()
@click.argument("container", type=PATH)
@click.option("--out", type=PATH, required=True, help="The .pte to write.")
def unpack(container: Path, out: Path) -> None:
    """Rebuild the plain stock .pte from CONTAINER (a model.stock.qnz of export), byte for byte."""
    from qn_deploy.files import read_bytes, write_atomic
    from qn_deploy.program.exporter import find_exporters

    data = read_bytes(container)
    try:
        program = find_exporters()["executorch"].rebuild({container.name: data})
    except InputError as error:
        raise InputError(f"{container}: {error}") from None
    write_atomic(out, program)
    click.echo(f"{out}: {len(program):,} bytes from {len(data):,}")


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
@click.argument("build", type=PATH)
@click.option("--app", type=PATH, default=Path("android_demo"), show_default=True, help="Folder of the app's project.")
@click.option("--name", help="What the model is called in the app; by default as the folder BUILD, or the one above if that is build.")
@click.option("--pte", is_flag=True, help="Also take model.pte, for an app that links our native backend.")
@click.option("--install", type=PATH, metavar="APK", help="Install this built app on a device by adb, instead of bundling.")
@click.option(
    "--check", is_flag=True, help="Let the app on the device check the model, instead of bundling. Exit code 0: all passed, 1: not."
)
@click.option("--serial", help="The device, as `adb devices` lists it; by default the only one.")
@click.pass_context
def android(
    context: click.Context, build: Path, app: Path, name: str | None, pte: bool, install: Path | None, check: bool, serial: str | None
) -> None:
    """Put the programs of the folder BUILD into the Android demo app, with references and hashes.

    With --install and --check the built app runs them on a phone, and the verdicts come back as rows of the report of `qn-deploy verify`.
    """
    from qn_deploy.android import bundle, model_name

    name = name or model_name(build)
    if install is not None or check:
        context.exit(_run_app(build, name, install, check, serial))
    bundled = bundle(build, app, name, pte)
    for file, size in bundled.files.items():
        click.echo(f"  {size:>9,}  {bundled.folder / file}")
    click.echo(f"  {sum(bundled.files.values()):>9,}  bytes in all")
    click.echo(f"\nnext: in {shlex.quote(str(app))}: gradle wrapper && ./gradlew connectedAndroidTest; README.md there tells more")


def _run_app(build: Path, name: str, install: Path | None, check: bool, serial: str | None) -> int:
    from rich.console import Console

    from qn_deploy.android_app import AndroidApp
    from qn_deploy.program.manifest import read_manifest
    from qn_deploy.report.tables import print_report
    from qn_deploy.verify.ladder import Report

    progress, device = _progress(), AndroidApp(serial)
    manifest = read_manifest(build)
    if install is not None:
        progress(f"installing {install}")
        device.install(install)
    checks = device.check(build, name, progress) if check else ()
    progress("")
    if not check:
        return 0
    report = Report(f"{build} on Android", manifest, checks)
    print_report(Console(), report)
    return 0 if report.passed else 1


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
