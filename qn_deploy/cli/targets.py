"""`qn-deploy targets`."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from qn_deploy.cli.following import tell_next
from qn_deploy.cli.options import json_option


@click.command("targets")
@json_option
def command(as_json: bool) -> None:
    """List the targets of export, and what each decides.

    \b
    Examples:
      qn-deploy targets
      qn-deploy targets --json
    """  # noqa: D301  # click wants the character
    from qn_deploy.targets import DEFAULT_TARGET, TARGETS

    if as_json:
        click.echo(json.dumps({name: asdict(target) for name, target in TARGETS.items()}, indent=1))
        return
    from rich.console import Console

    from qn_deploy.report.tables import targets_table

    Console().print(targets_table(TARGETS))
    tell_next(f"qn-deploy export model.pt --target {DEFAULT_TARGET} --out build")
