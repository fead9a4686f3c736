"""The one form of all benchmarks: a list of rows, printed as a table and written as JSON with the settings that led to them."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

VERSIONED = ("qn-deploy", "torch", "torchao", "onnxruntime", "executorch")

json_option = click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the rows to this file.")
seed_option = click.option("--seed", default=0, show_default=True, help="Of everything random.")


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        name: what was measured, "iPQ: accuracy on onnxruntime".
        value: the number.
        unit: of the number: %, bytes, ms, x, steps, ...
        bar: what the project asks of it, "<= 0.3"; None where it asks nothing.
        met: whether the number keeps its bar; None where there is none.
    """

    name: str
    value: float
    unit: str
    bar: str | None = None
    met: bool | None = None


def at_most(name: str, value: float, unit: str, limit: float) -> Row:
    """A row whose bar is an upper limit."""
    return Row(name, value, unit, f"<= {limit:,.6g}", value <= limit)


def below(name: str, value: float, unit: str, limit: float) -> Row:
    """A row whose bar is an upper limit that must not be reached."""
    return Row(name, value, unit, f"< {limit:,.6g}", value < limit)


def at_least(name: str, value: float, unit: str, limit: float) -> Row:
    """A row whose bar is a lower limit."""
    return Row(name, value, unit, f">= {limit:,.6g}", value >= limit)


def over_seeds(name: str, values: Sequence[float], unit: str, limit: float | None = None) -> list[Row]:
    """The mean of one number over the seeds, with its lower limit if there is one, and its spread: the largest less the smallest."""
    mean = statistics.mean(values)
    return [
        Row(f"{name}: mean", mean, unit) if limit is None else at_least(f"{name}: mean", mean, unit, limit),
        Row(f"{name}: spread", max(values) - min(values), unit),
    ]


def chosen() -> dict[str, object]:
    """The options of the command that runs, but for paths, which belong to the machine."""
    return {name: value for name, value in click.get_current_context().params.items() if not isinstance(value, Path | None)}


def finish(title: str, rows: list[Row], settings: Mapping[str, object], json_file: Path | None) -> int:
    """Prints the table, writes the JSON, and tells the exit code.

    Args:
        title: what the rows are about.
        rows: in the order to show them.
        settings: seeds and options of the run; the machine and the versions are added.
        json_file: where to write the JSON; None writes none.

    Returns:
        0 if every bar is met, else 1.

    Raises:
        ValueError: two rows have one name, or a number is not finite.
    """
    everything = write(title, rows, settings, json_file)
    console = Console()
    table = Table("what", "value", "unit", "bar", "met", title=title)
    for row in rows:
        verdict = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}[row.met]
        table.add_row(row.name, f"{row.value:,.6g}", row.unit, row.bar or "", verdict)
    console.print(table)
    console.print(f"settings: {json.dumps(everything)}", style="dim", markup=False)
    missed = [row.name for row in rows if row.met is False]
    if missed:
        console.print(f"{len(missed)} bars missed: {'; '.join(missed)}", style="bold red", markup=False)
    return 1 if missed else 0


def write(title: str, rows: list[Row], settings: Mapping[str, object], json_file: Path | None) -> dict[str, object]:
    """Writes the JSON, if there is to be one; the settings with the machine and the versions.

    Raises:
        ValueError: two rows have one name, or a number is not finite.
    """
    if twice := sorted(name for name, count in Counter(row.name for row in rows).items() if count > 1):
        raise ValueError(f"rows need names of their own; more than one is called {', '.join(twice)}")
    everything = {**settings, "machine": machine(), "versions": {name: version(name) for name in VERSIONED}}
    if json_file is not None:
        text = json.dumps({"title": title, "settings": everything, "rows": [asdict(row) for row in rows]}, indent=1, allow_nan=False)
        json_file.write_text(text + "\n")
    return everything


def skip(title: str, reason: str, json_file: Path | None) -> int:
    """Says why a benchmark can't run here; its JSON has no rows. The exit code is 0."""
    if json_file is not None:
        json_file.write_text(json.dumps({"title": title, "settings": {"skipped": reason}, "rows": []}, indent=1) + "\n")
    click.echo(f"skipped: {title}: {reason}")
    return 0


def clock() -> Callable[[str], None]:
    """A function that tells on stderr what is being done, and at which second."""
    start = time.perf_counter()

    def tell(stage: str) -> None:
        click.echo(f"  [{time.perf_counter() - start:5.0f} s] {stage}", err=True)

    return tell


def machine() -> dict[str, object]:
    """What a reader needs to judge the timings: processor, cores, system."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"processor": model or platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
