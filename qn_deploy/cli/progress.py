"""Stages on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable

import click


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
