"""What an exporter is, and how exporters are found: by the entry points `qn_deploy.exporters`, ours through the same door as anyone's.

`qn-deploy export --help` loads the exporters for their options. So that it answers at once, nothing here imports torch, and an exporter
should import its runtime inside its methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from qn_deploy.errors import ExportError

if TYPE_CHECKING:
    from qn_deploy.lowering.lower import Activations, Form, Lowered
    from qn_deploy.lowering.rules import Rules
    from qn_deploy.program.program import Batch, Program
    from qn_deploy.targets import Target

GROUP = "qn_deploy.exporters"  # of entry points
NO_PARTS: Mapping[str, bytes] = MappingProxyType({})


class TooLargeError(ExportError):
    """Dense weights take more than one file of the format can hold."""


@dataclass(frozen=True)
class NoOptions:
    """The options of an exporter that has none."""


@dataclass(frozen=True)
class WeightMemory:
    """What a weight takes in memory once a program is loaded: in bytes, without scales and biases, which are there in any case.

    Attributes:
        expanded: as int8 values.
        compressed: as a table, with what the kernels keep beside it; 0 where the program does not keep the table.
    """

    expanded: Annotated[int, range(1 << 53)]
    compressed: Annotated[int, range(1 << 53)] = 0

    @property
    def taken(self) -> int:
        """In this program."""
        return self.compressed or self.expanded


@dataclass(frozen=True)
class Written:
    """A program in a runtime's own format.

    Attributes:
        data: the file's bytes.
        lowered: the simulated program that the file must agree with.
        notes: what did not go as a user would hope (an operator left to a slower kernel, ...), a line each.
        companions: the same program in another form, as files by name, from which `Exporter.rebuild` makes the dense program.
        facts: what a user of the file has to know of it ("opset": "18"), for the manifest.
        parts: files by name that belong to the file and have to lie beside it, as it is too large for one.
        dense: weights that the file holds without their table, on purpose.
        folded: weights that the file does not hold at all: what reads them was computed when the file was written.
        memory: what each table takes in memory, where some were to stay tables there.
    """

    data: bytes
    lowered: Lowered
    notes: tuple[str, ...] = ()
    companions: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)
    dense: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    memory: Mapping[str, WeightMemory] = field(default_factory=dict)


class Exporter(Protocol):
    """Writes one runtime's format, and reads it back for verification.

    Attributes:
        filename: the file's name in the build folder.
        runtime: the runtime's name in reports.
        rules: how the runtime rounds where runtimes differ.
        optimizes: the runtime rewrites the graph when it loads, and can be told not to.
        options: a frozen dataclass of what the exporter may choose, `NoOptions` if that is nothing. Each field is bool, int, float, str or
            a Literal of str, has a default and the metadata "help", and is an option of `qn-deploy export`: --EXPORTER-FIELD, or what its
            metadata calls "flag".

    An exporter may also have a `runner`, a `qn_deploy.exporting.runner.Runner`: then its files run on devices too. And a method
    `account(data) -> tuple[qn_deploy.program.account.Part, ...]`: then `qn-deploy inspect` tells what each byte of its files is. And a
    method `opened(data, parts) -> Callable[[Batch], Batch]`, a program that stays loaded: then `qn-deploy bench` times its files. And
    `own_int8(program, plain, inputs, is_static) -> bytes`, what the runtime's own tools make of a float program and its written file: then
    that is timed beside them. And
    `needs`, the modules of its runtime, with `install`, the command that installs them: where one is missing, the exporter is left out.
    """

    filename: str
    runtime: str
    rules: Rules
    optimizes: bool
    options: type[Any]

    def forms(self, activations: Activations, options: Any) -> tuple[Form, ...]:
        """The forms of the program that `write` wants; the first is the one that the file must agree with.

        Args:
            activations: how activations are to be quantized.
            options: an instance of `self.options`.

        Raises:
            ExportError: the exporter writes no file with these activations; the message says why.
        """

    def write(self, program: Program, lowered: tuple[Lowered, ...], options: Any, target: Target) -> Written:
        """Serializes a program.

        Args:
            program: what was lowered.
            lowered: it in the forms that `forms` asked for. Other exporters may have asked for the same one: it must not be changed.
            options: an instance of `self.options`.
            target: where the file is to run.

        Raises:
            ExportError: the program holds what the runtime can't take; the message names it.
        """

    def run(
        self, data: bytes, batches: tuple[Batch, ...], optimized: bool = True, parts: Mapping[str, bytes] = NO_PARTS
    ) -> tuple[Batch, ...]:
        """Runs the file's bytes on the real runtime, one result for each batch; `optimized=False` turns graph rewriting off."""

    def weight_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        """The sha256 of each constant of the written file: of a table its int8 values, row-major, and its scales; else as it is stored."""

    def table_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        """The sha256 of the int8 values, row-major, of each weight that the written file itself decodes from a table."""

    def dense(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> bytes:
        """The same program with every table expanded to plain dense weights, for the stock runtime.

        Raises:
            TooLargeError: these do not fit into one file.
        """

    def rebuild(self, companions: Mapping[str, bytes]) -> bytes:
        """What `dense` gives, byte for byte, from the companion files of a written program."""

    def is_container(self, data: bytes) -> bool:
        """True if these are the bytes of a companion from which alone `rebuild` makes the dense program."""


def find_exporters() -> dict[str, Exporter]:
    """All exporters that can work here by name, in the order of their names."""
    return {name: exporter for name, exporter in registered().items() if not missing(exporter)}


def registered() -> dict[str, Exporter]:
    """All exporters that are installed, those without their runtime among them."""
    return {point.name: point.load() for point in sorted(entry_points(group=GROUP), key=lambda point: point.name)}


def missing(exporter: Exporter) -> str:
    """What an exporter lacks, with the command that installs it; empty if it can work."""
    absent = [module for module in getattr(exporter, "needs", ()) if find_spec(module) is None]
    return f"{exporter.runtime} needs the module {absent[0]}: {exporter.install}" if absent else ""  # type: ignore[attr-defined]


def unknown(names: Iterable[str], usable: Iterable[str]) -> str:
    """Why exporters of these names are not among the usable ones, and what to do."""
    listed = registered()
    if reasons := [missing(listed[name]) for name in names if name in listed]:
        return reasons[0]
    return f"no exporter named {', '.join(names)} is installed; there are {', '.join(usable) or 'none'}"
