"""`qn-deploy android`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from qn_deploy.cli.options import PATH


@click.command("android")
@click.argument("build", type=PATH)
@click.option("--app", type=PATH, default=Path("android_demo"), show_default=True, help="Folder of the app's project.")
@click.option("--name", help="What the model is called in the app; by default as the folder BUILD, or the one above if that is build.")
@click.option("--pte", is_flag=True, help="Also take model.pte, for an app that links our native backend.")
def command(build: Path, app: Path, name: str | None, pte: bool) -> None:
    """Put the programs of the folder BUILD into the Android demo app, with references and hashes."""
    from qn_deploy.android import bundle, model_name

    bundled = bundle(build, app, name or model_name(build), pte)
    for file, size in bundled.files.items():
        click.echo(f"  {size:>9,}  {bundled.folder / file}")
    click.echo(f"  {sum(bundled.files.values()):>9,}  bytes in all")
    click.echo(f"\nnext: in {shlex.quote(str(app))}: gradle wrapper && ./gradlew connectedAndroidTest; README.md there tells more")
