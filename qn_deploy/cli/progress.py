"""Stages and bars on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qn_deploy.compression.progress import Tell


def stages() -> Callable[[str], None]:
    """A function that tells, on standard error, when a stage begins and how long the last one took; "" ends the last stage."""
    running: list[tuple[str, float]] = []

    def tell(stage: str) -> None:
        if running:
            name, start = running.pop()
            click.echo(f"  {name} ({time.perf_counter() - start:.1f} s)", err=True)
        if stage:
            running.append((stage, time.perf_counter()))

    return tell


@contextmanager
def bars() -> Iterator[Tell | None]:
    """Bars with layer, elapsed and remaining time, where standard error is a terminal; nothing where it is piped."""
    if not sys.stderr.isatty():
        yield None
        return
    from qn_deploy.compression.progress import progress_bar

    with progress_bar() as tell:
        yield tell
