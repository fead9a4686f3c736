"""`qn-deploy report`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qn_deploy.cli.following import quoted, tell_next
from qn_deploy.cli.options import PATH, json_option
from qn_deploy.cli.progress import stages


@click.command("report")
@click.argument("build", type=PATH)
@click.option("--model", type=PATH, help="The model.pt that was exported: for ranges, tables, the frontier of a budget.")
@click.option("--no-verify", is_flag=True, help="Do not run the parity ladder; the report says so.")
@click.option("--out", type=PATH, help="The file to write.  [default: report.html in BUILD]")
@json_option
@click.pass_context
def command(context: click.Context, build: Path, model: Path | None, no_verify: bool, out: Path | None, as_json: bool) -> None:
    """Write all that is known of the folder BUILD to one page, report.html, which needs no network.

    Exit code 0: written, and the parity ladder passed or was not run; 1: written, and a check failed.

    \b
    Examples:
      qn-deploy report build --model model.pt
      qn-deploy report build --no-verify --out page.html
    """  # noqa: D301  # click wants the character
    progress = stages()
    progress(f"reading {build}")
    from qn_deploy.exporting.manifest import REPORT
    from qn_deploy.program.store import load
    from qn_deploy.report.facts import gather
    from qn_deploy.report.page import write_page
    from qn_deploy.verification.ladder import verify

    program = load(model) if model is not None else None
    checks = None if no_verify else verify(build, progress=progress).checks
    progress("drawing")
    facts = gather(build, program, checks)
    out = out or build / REPORT
    size = write_page(facts, out)
    progress("")
    if as_json:
        click.echo(json.dumps({"out": str(out), "bytes": size, "passed": None if checks is None else facts.passed}))
    else:
        click.echo(f"{out}: {size:,} bytes; open it in any browser")
        tell_next(f"qn-deploy android {quoted(build)}")
    context.exit(1 if checks is not None and not facts.passed else 0)
