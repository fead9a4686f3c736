"""`qn-deploy devices`, `qn-deploy devices setup`."""

from __future__ import annotations

import click

from qn_deploy.cli.progress import stages


@click.group("devices", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """List the devices that can run the files, and what is missing for the others."""
    if context.invoked_subcommand is None:
        from rich.console import Console

        from qn_deploy.report.tables import devices_table
        from qn_deploy.verification.devices.find import list_devices

        Console().print(devices_table(list_devices()))


@command.command()
@click.argument("kind", type=click.Choice(["qemu", "adb", "ssh"]))
def setup(kind: str) -> None:
    """Make the bundle that devices run: the runtimes for 64-bit ARM. For qemu, fetch qemu as well.

    Debian packages and wheels go to the cache folder; no root is needed.
    """
    from qn_deploy.verification.devices.bundle import build_bundle

    progress = stages()
    folder = build_bundle(qemu=kind == "qemu", progress=progress)
    progress("")
    click.echo(f"{folder}\nnext: qn-deploy verify build --device {kind}{':HOST' if kind == 'ssh' else ''}")
