"""`qn-deploy verify`."""

from __future__ import annotations

from pathlib import Path

import click

from qn_deploy.cli.following import quoted, tell_next
from qn_deploy.cli.options import PATH, json_option
from qn_deploy.cli.progress import stages


@click.command("verify")
@click.argument("build", type=PATH)
@click.option("--min-sqnr", type=float, metavar="DB", help="Fail where the loss of quantization is larger: least SQNR to the float model.")
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="DEVICE",
    help="Run the files there too: qemu[:CPU], adb[:SERIAL], ssh:HOST; `qn-deploy devices` lists them. May be repeated.",
)
@click.option("--layers", type=PATH, metavar="MODEL", help="Judge each layer by itself too; MODEL is the model.pt that was exported.")
@json_option
@click.pass_context
def command(
    context: click.Context, build: Path, min_sqnr: float | None, devices: tuple[str, ...], layers: Path | None, as_json: bool
) -> None:
    """Check the files of the folder BUILD on the real runtimes. Exit code 0: all passed, 1: not.

    \b
    Examples:
      qn-deploy verify build
      qn-deploy verify build --device qemu:cortex-a76 --layers model.pt
      qn-deploy verify build --min-sqnr 15 --json
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress(f"reading {build}")
    from rich.console import Console

    from qn_deploy.verification.devices.find import next_device
    from qn_deploy.verification.ladder import verify

    report = verify(build, min_sqnr, devices, layers, progress)
    progress("")
    if as_json:
        click.echo(report.to_json())
    else:
        Console().print(report)
        hint = next_device(report.manifest.config.target, build) if report.passed and not devices else ""
        tell_next(*([hint] if hint else []), f"qn-deploy report {quoted(build)}")
    context.exit(0 if report.passed else 1)
