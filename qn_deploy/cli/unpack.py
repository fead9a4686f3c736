"""`qn-deploy unpack`."""

from __future__ import annotations

from pathlib import Path

import click

from qn_deploy.cli.options import PATH


@click.command("unpack")
@click.argument("container", type=PATH)
@click.option("--out", type=PATH, required=True, help="The program to write.")
def command(container: Path, out: Path) -> None:
    """Rebuild the program for the stock runtime from CONTAINER (a model.stock.qnz of export), byte for byte."""
    from qn_deploy.errors import InputError
    from qn_deploy.exporting.unpack import unpack
    from qn_deploy.files import write_atomic

    program = unpack(container)
    if out.exists() and out.samefile(container):
        raise InputError(f"--out {out} is the container itself; give another name: --out model.pte")
    write_atomic(out, program)
    click.echo(f"{out}: {len(program):,} bytes from {container.stat().st_size:,}")
