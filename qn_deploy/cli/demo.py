"""`qn-deploy demo`."""

from __future__ import annotations

from pathlib import Path

import click

from qn_deploy.cli.following import quoted, tell_next
from qn_deploy.cli.options import PATH, json_option
from qn_deploy.cli.progress import stages


@click.command("demo")
@click.option("--out", type=PATH, default=Path("build/demo"), show_default=True, help="Folder for the files.")
@json_option
@click.pass_context
def command(context: click.Context, out: Path, as_json: bool) -> None:
    """Train, compress, export and verify a small network on scikit-learn's digits; about a minute.

    \b
    Examples:
      qn-deploy demo
      qn-deploy demo --out somewhere --json
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress("loading torch")
    from rich.console import Console

    from qn_deploy.demo import run

    shown = run(out, progress)
    progress("")
    if as_json:
        click.echo(shown.to_json())
    else:
        Console().print(shown)
        model, build = quoted(out / "model.pt"), quoted(out / "build")
        tell_next(
            f"qn-deploy inspect {model}",
            f"qn-deploy export {model} --target arm --out {build}",
            f"qn-deploy verify {build}",
            "your own model: the lines under 'In Python' in README.md",
        )
    context.exit(0 if shown.report.passed else 1)
