"""What to type next: the last lines of a command's output."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


def tell_next(*commands: str) -> None:
    """The commands, one a line."""
    click.echo("\nnext: " + "\n      ".join(commands))


def quoted(path: str | Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))
