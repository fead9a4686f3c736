"""`qn-deploy inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from qn_deploy.cli.following import quoted, tell_next
from qn_deploy.cli.options import PATH, json_option


@click.command("inspect")
@click.argument("path", type=PATH, metavar="FILE")
@json_option
def command(path: Path, as_json: bool) -> None:
    """Show what every byte of FILE is: a model.pt, an .onnx, a .pte, a .qnz, or the folder of an export.

    Of a model.pt each compressed weight is shown too, its tables, and what has another form than the recipe asked for; of a
    folder what each table takes in memory, where `export --memory` chose which stay tables.

    \b
    Examples:
      qn-deploy inspect model.pt
      qn-deploy inspect build --json
    """  # noqa: D301  # click wants the character
    from rich.console import Console

    from qn_deploy.exporting.account import account
    from qn_deploy.exporting.describe import describe_weights
    from qn_deploy.exporting.manifest import read_manifest
    from qn_deploy.program.store import load
    from qn_deploy.report.tables import account_table, memory_table, weights_table

    program = load(path) if path.suffix == ".pt" or not path.exists() else None
    files = account(path)
    if as_json:
        click.echo(json.dumps({name: [asdict(part) for part in parts] for name, parts in files.items()}))
        return
    if program is not None:
        Console().print(weights_table(str(path), describe_weights(program), program.left))
    Console().print(account_table(files))
    if path.is_dir():
        Console().print(memory_table(read_manifest(path)))
    if program is not None:
        tell_next(f"qn-deploy {'export' if program.weights else 'compress'} {quoted(path)}")
    elif path.is_dir():
        tell_next(f"qn-deploy verify {quoted(path)}")
