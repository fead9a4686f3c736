"""What the command line prints: tables of files, rungs and layers."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qn_deploy.exporting.manifest import Manifest, WeightEntry
from qn_deploy.verification.devices.find import Found
from qn_deploy.verification.ladder import Report

_VERDICT = {True: "[green]pass[/]", False: "[bold red]FAIL[/]", None: "-"}


def size(count: int) -> str:
    """Bytes for people: 1,234 B, 56.7 KB, 8.9 MB (1 KB = 1024 B)."""
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 2**10:.1f} KB" if count < 2**20 else f"{count / 2**20:.2f} MB"


def print_build(console: Console, manifest: Manifest, folder: Path) -> None:
    """The files of an export, with their size against the float model."""
    title = f"{folder}: {manifest.target}, {manifest.activations} activations"
    table = _table("file", "runs on", "bytes", "of float", "smaller", title=title)
    for name, entry in manifest.files.items():
        parts = sum(part.bytes for part in entry.parts.values())
        companions = sum(file.bytes for file in entry.companions.values())
        for files, count in (([name, *entry.parts], entry.bytes + parts), ([*entry.companions], companions)):
            if files:
                share = count / manifest.float_bytes
                table.add_row(" + ".join(files), entry.runtime, size(count), f"{share:.1%}", f"{1 / share:.1f} x")
    console.print(table)
    console.print(f"float constants {size(manifest.float_bytes)}; codes, centroids, scales and the rest {size(manifest.theoretical_bytes)}")
    print_left(console, manifest.left)
    for name, entry in manifest.files.items():
        for note in entry.notes:
            console.print(f"note on {name}: {note}", markup=False)
        for fact, value in entry.facts.items():
            console.print(f"{name}: {fact} {value}", markup=False)


def print_left(console: Console, left: dict[str, str]) -> None:
    """Weights that are not stored as the recipe asked, with the reason."""
    for name, reason in left.items():
        console.print(f"kept otherwise: {name}: {reason}", markup=False)


def print_report(console: Console, report: Report) -> None:
    """The ladder, a line a check."""
    table = _table("rung", "what", "found", "limit", "verdict", title=f"{report.folder}: parity ladder")
    for check in report.checks:
        table.add_row(str(check.rung), escape(check.what), escape(check.found), escape(check.limit), _VERDICT[check.passed])
    console.print(table)
    failed = sum(check.passed is False for check in report.checks)
    console.print(
        f"[bold red]{failed} check{'s' * (failed != 1)} failed[/]" if failed else f"[green]all {len(report.checks)} checks passed[/]"
    )


def print_devices(console: Console, devices: tuple[Found, ...]) -> None:
    """Each device, and what is missing where one is not ready."""
    table = _table("device", "ready", "", title="devices")
    for device in devices:
        table.add_row(escape(device.name), "[green]yes[/]" if device.ready else "no", escape(device.remark))
    console.print(table)


def print_weights(console: Console, weights: dict[str, WeightEntry], title: str) -> None:
    """Each compressed weight: its form, shape, G codebooks of K centroids of d weights, and bytes against float."""
    table = _table("weight", "form", "shape", "d", "G", "K", "bytes", "smaller", title=title)
    for name, entry in weights.items():
        plain = 4
        for extent in entry.shape:
            plain *= extent
        columns = ("" if value is None else str(value) for value in (entry.block_size, entry.codebooks, entry.centroids))
        table.add_row(name, entry.kind, "x".join(map(str, entry.shape)), *columns, size(entry.bytes), f"{plain / entry.bytes:.1f} x")
    console.print(table)


def _table(*columns: str, title: str) -> Table:
    table = Table(*columns, title=Text(title))
    for column in table.columns:
        column.overflow = "fold"  # a narrow terminal wraps names; cut short, those of many layers would be the same
    return table
