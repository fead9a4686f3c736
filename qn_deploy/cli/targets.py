"""`qn-deploy targets`."""

from __future__ import annotations

import click


@click.command("targets")
def command() -> None:
    """List the targets of export, and what each decides."""
    from rich.console import Console

    from qn_deploy.report.tables import targets_table
    from qn_deploy.targets import TARGETS

    Console().print(targets_table(TARGETS))
