"""`qn-deploy demo`."""

from __future__ import annotations

from pathlib import Path

import click

from qn_deploy.cli.options import PATH
from qn_deploy.cli.progress import stages


@click.command("demo")
@click.option("--out", type=PATH, default=Path("build/demo"), show_default=True, help="Folder for the files.")
@click.pass_context
def command(context: click.Context, out: Path) -> None:
    """Train, compress, export and verify a small network on scikit-learn's digits; about a minute."""
    progress = stages()
    progress("loading torch")
    from qn_deploy.demo import run

    context.exit(0 if run(out, progress) else 1)
