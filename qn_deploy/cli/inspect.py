"""`qn-deploy inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from qn_deploy.cli.options import PATH


@click.command("inspect")
@click.argument("model", type=PATH)
def command(model: Path) -> None:
    """Show what MODEL (a model.pt) holds: each compressed weight, its tables and bytes, and what was left."""
    from rich.console import Console

    from qn_deploy.exporting.describe import describe_weights
    from qn_deploy.program.store import load
    from qn_deploy.report.tables import weights_table

    program = load(model)
    Console().print(weights_table(str(model), describe_weights(program), program.left))
