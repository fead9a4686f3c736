"""How the commands that make a model.pt end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qn_deploy.cli.following import quoted, tell_next

if TYPE_CHECKING:
    from qn_deploy.program.program import Program


def save_and_tell(program: Program, out: Path, as_json: bool, progress: Callable[[str], None]) -> None:
    """Writes a compressed program, and prints what it is and what to type next, or that as JSON."""
    from rich.console import Console

    from qn_deploy.program.store import save
    from qn_deploy.report.compressed import Compressed

    progress(f"saving {out}")
    save(program, out)
    progress("")
    result = Compressed.of(program, out)
    if as_json:
        click.echo(result.to_json())
        return
    Console().print(result)
    tell_next(f"qn-deploy inspect {quoted(out)}", f"qn-deploy export {quoted(out)} --target arm --out build")
