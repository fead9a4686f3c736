"""`qn-deploy unpack`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qn_deploy.cli.following import quoted, tell_next
from qn_deploy.cli.options import PATH, json_option


@click.command("unpack")
@click.argument("container", type=PATH)
@click.option("--out", type=PATH, required=True, help="The program to write.")
@json_option
def command(container: Path, out: Path, as_json: bool) -> None:
    """Rebuild the program for the stock runtime from CONTAINER (a model.stock.qnz of export), byte for byte.

    \b
    Examples:
      qn-deploy unpack build/model.stock.qnz --out model.pte
    """  # noqa: D301  # click wants the character
    from qn_deploy.errors import InputError
    from qn_deploy.exporting.unpack import unpack
    from qn_deploy.files import write_atomic

    program = unpack(container)
    if out.exists() and out.samefile(container):
        raise InputError(f"--out {out} is the container itself; give another name: --out model.pte")
    write_atomic(out, program)
    size = container.stat().st_size
    if as_json:
        click.echo(json.dumps({"out": str(out), "bytes": len(program), "container_bytes": size}))
        return
    click.echo(f"{out}: {len(program):,} bytes from {size:,}")
    tell_next(f"qn-deploy inspect {quoted(out)}")
