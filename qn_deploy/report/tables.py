"""What is printed: tables of files, rungs, weights, devices and targets, as parts for rich's print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from math import prod
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from qn_deploy.bench.measure import Times
    from qn_deploy.exporting.exporter import WeightMemory
    from qn_deploy.exporting.manifest import FileEntry, Manifest, WeightEntry
    from qn_deploy.program.account import Part
    from qn_deploy.targets import Target
    from qn_deploy.verification.devices.find import Found
    from qn_deploy.verification.judge import Check

_VERDICT = {True: "[green]pass[/]", False: "[bold red]FAIL[/]", None: "-"}


def as_text(printable: Any) -> str:
    """What rich would print, without colours."""
    console = Console(file=StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(printable)
    return capture.get().rstrip("\n")


def size(count: int) -> str:
    """Bytes for people: 1,234 B, 56.7 KB, 8.9 MB (1 KB = 1024 B)."""
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 2**10:.1f} KB" if count < 2**20 else f"{count / 2**20:.2f} MB"


def build_table(folder: str, manifest: Manifest) -> Group:
    """The files of an export, with their size against the float model."""
    table = new_table(
        "file", "runs on", "bytes", "of float", "smaller", title=f"{folder}: {manifest.config.target}, {manifest.activations} activations"
    )
    for name, entry in manifest.files.items():
        parts = sum(part.bytes for part in entry.parts.values())
        companions = sum(file.bytes for file in entry.companions.values())
        for files, count in (([name, *entry.parts], entry.bytes + parts), ([*entry.companions], companions)):
            if files:
                share = count / manifest.float_bytes
                table.add_row(" + ".join(files), entry.runtime, size(count), f"{share:.1%}", f"{1 / share:.1f} x")
    constants = f"float constants {size(manifest.float_bytes)}; codes, centroids, scales and the rest {size(manifest.theoretical_bytes)}"
    remarks = [] if manifest.weights else ["nothing is compressed: the recipe matched no weight, or there was none"]
    lines = [Text(line) for name, entry in manifest.files.items() for line in _remarks(name, entry)]
    return Group(table, Text(constants), *map(Text, remarks), *_left(manifest.left), *lines)


def _remarks(name: str, entry: FileEntry) -> Iterable[str]:
    yield from (f"note on {name}: {note}" for note in entry.notes)
    yield from (f"{name}: {fact} {value}" for fact, value in entry.facts.items())


def report_table(folder: str, checks: Iterable[Check], verdict: str) -> Group:
    """The ladder, a line a check, and the verdict."""
    table = new_table("rung", "what", "found", "limit", "verdict", title=f"{folder}: parity ladder")
    for check in checks:
        table.add_row(str(check.rung), escape(check.what), escape(check.found), escape(check.limit), _VERDICT[check.passed])
    return Group(table, Text.from_markup(verdict))


def weights_table(title: str, weights: Mapping[str, WeightEntry], left: Mapping[str, str]) -> Group:
    """Each compressed weight: its form, shape, G codebooks of K centroids of d weights, and its bytes; and what was left."""
    table = new_table("weight", "form", "shape", "d", "G", "K", "bytes", "bits a weight", title=title)
    for name, entry in weights.items():
        columns = ("" if value is None else str(value) for value in (entry.block_size, entry.codebooks, entry.centroids))
        table.add_row(
            name, entry.kind, "x".join(map(str, entry.shape)), *columns, size(entry.bytes), f"{8 * entry.bytes / prod(entry.shape):.2f}"
        )
    return Group(table, *_left(left))


def memory_table(manifest: Manifest) -> Group:
    """For each file of whose tables some stay tables in memory: what each takes there."""
    tables: list[RenderableType] = []
    for file, entry in manifest.files.items():
        if not entry.memory:
            continue
        table = new_table("weight", "int8", "as a table", "taken", title=f"{file}: memory of its tables once it is loaded, in bytes")
        for name, weight in entry.memory.items():
            table.add_row(escape(name), f"{weight.expanded:,}", f"{weight.compressed:,}" if weight.compressed else "", f"{weight.taken:,}")
        table.add_section()
        table.add_row("all", *(f"{sum(numbers):,}" for numbers in _columns(entry.memory.values())))
        tables.append(table)
    return Group(*tables)


def _columns(weights: Iterable[WeightMemory]) -> Iterable[tuple[int, ...]]:
    return zip(*((weight.expanded, weight.compressed, weight.taken) for weight in weights), strict=True)


def account_table(files: Mapping[str, Iterable[Part]]) -> Group:
    """For each file its bytes by kind, all of them, and the weights that take most."""
    tables: list[RenderableType] = []
    for file, listed in files.items():
        parts = list(listed)
        whole = sum(part.bytes for part in parts)
        kinds, names = (_summed((getattr(part, field), part.bytes) for part in parts) for field in ("kind", "name"))
        table = new_table("kind", "bytes", "share", title=f"{file}: {whole:,} bytes")
        for kind, count in kinds:
            table.add_row(kind, f"{count:,}", f"{count / max(whole, 1):.1%}")
        largest = ", ".join(f"{name} {size(count)}" for name, count in names if name)
        tables += [table, Text(f"largest: {largest}") if largest else Text("")]
    return Group(*tables)


def _summed(counts: Iterable[tuple[str, int]], most: int = 12) -> list[tuple[str, int]]:
    """The sums by name, the largest first, at most so many and one for all others."""
    total: dict[str, int] = {}
    for name, count in counts:
        total[name] = total.get(name, 0) + count
    order = sorted(total.items(), key=lambda entry: -entry[1])
    rest = sum(count for _, count in order[most:])
    return order[:most] + ([("all others", rest)] if rest else [])


def times_table(folder: str, times: Iterable[Times]) -> Table:
    """What was measured of each program, and its median beside that of the first of its exporter and batch."""
    table = new_table(
        "program", "batch", "file", "load", "first run", "p50", "p90", "peak", "resident", "p50 to tables", title=f"{folder}: times in ms"
    )
    first: dict[tuple[str, int], float] = {}
    for each in times:
        base = first.setdefault((each.exporter, each.batch), each.p50_ms)
        numbers = (f"{value:.2f}" for value in (each.load_ms, each.first_ms, each.p50_ms, each.p90_ms))
        memory = ("?" if value is None else f"{value:.1f} MB" for value in (each.memory_mb, each.resident_mb))
        table.add_row(each.name, str(each.batch), size(each.bytes), *numbers, *memory, f"{each.p50_ms / base:.2f} x")
    return table


def devices_table(devices: Iterable[Found]) -> Table:
    """Each device, and what is missing where one is not ready."""
    table = new_table("device", "ready", "", title="devices")
    for device in devices:
        table.add_row(escape(device.name), "[green]yes[/]" if device.ready else "no", escape(device.remark))
    return table


def targets_table(targets: Mapping[str, Target]) -> Table:
    """Each target, and what it decides."""
    table = new_table("target", "what it is", "int8 sums", "verify names", title="targets")
    for name, target in targets.items():
        sums = "in 16 bits without VNNI: the files say the session option that makes them exact" if target.saturates else "in 32 bits"
        devices = "a device, where this machine is another one: " + ", ".join(target.devices) if target.devices else "nothing more"
        table.add_row(name, target.title, sums, devices)
    return table


def _left(left: Mapping[str, str]) -> list[RenderableType]:
    """Weights that have another form than the recipe asked for, with the reason."""
    return [Text(f"{name}: {reason}") for name, reason in left.items()]


def new_table(*columns: str, title: str) -> Table:
    """A table whose columns wrap."""
    table = Table(*columns, title=Text(title))
    for column in table.columns:
        column.overflow = "fold"  # a narrow terminal wraps names; cut short, those of many layers would be the same
    return table
