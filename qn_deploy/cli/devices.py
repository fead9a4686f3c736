"""`qn-deploy devices`, `qn-deploy devices setup`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from qn_deploy.cli.following import tell_next
from qn_deploy.cli.options import json_option
from qn_deploy.cli.progress import stages


@click.group("devices", invoke_without_command=True)
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """List the devices that can run the files, and what is missing for the others.

    \b
    Examples:
      qn-deploy devices
      qn-deploy devices setup qemu
    """  # noqa: D301  # click wants the character
    if context.invoked_subcommand is not None:
        return
    from qn_deploy.verification.devices.find import list_devices

    found = list_devices()
    if as_json:
        click.echo(json.dumps([asdict(each) for each in found], indent=1))
        return
    from rich.console import Console

    from qn_deploy.report.tables import devices_table
    from qn_deploy.verification.devices.bundle import SETUP

    Console().print(devices_table(found))
    usable = [each.name for each in found if each.ready and ":" in each.name and each.name != "ssh:HOST"]
    tell_next(f"qn-deploy verify build --device {usable[-1]}" if usable else SETUP)


@command.command()
@click.argument("kind", type=click.Choice(["qemu", "adb", "ssh"]))
@json_option
def setup(kind: str, as_json: bool) -> None:
    """Make the bundle that devices run: the runtimes for 64-bit ARM. For qemu, fetch qemu as well.

    Debian packages and wheels go to the cache folder; no root is needed.

    \b
    Examples:
      qn-deploy devices setup qemu
      qn-deploy devices setup adb
    """  # noqa: D301  # click wants the character
    from qn_deploy.verification.devices.bundle import build_bundle

    progress = stages()
    folder = build_bundle(qemu=kind == "qemu", progress=progress)
    progress("")
    if as_json:
        click.echo(json.dumps({"folder": str(folder)}))
        return
    click.echo(folder)
    tell_next(f"qn-deploy verify build --device {kind}{':HOST' if kind == 'ssh' else ''}")
