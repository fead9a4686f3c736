"""What an exporter is, and how exporters are found: by the entry points `qn_deploy.exporters`, ours through the same door as anyone's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Literal, Protocol

from qn_deploy.errors import ExportError
from qn_deploy.lowering.lower import Activations, Lowered
from qn_deploy.lowering.rules import Rules
from qn_deploy.program.program import Batch, Program


@dataclass(frozen=True)
class Options:
    """What an export may choose beside the activations. An exporter reads what concerns its runtime.

    Attributes:
        allow_unfused: onnx: a layer that the runtime does not fuse is a remark, not an error.
        shell: onnx: also write the graph and its constants as two files, which take less memory to load.
        executorch_form: executorch: "delegate" (tables expand when the program is loaded) or "graph" (weights are looked up at every run).
    """

    allow_unfused: bool = False
    shell: bool = False
    executorch_form: Literal["delegate", "graph"] = "delegate"


DEFAULT = Options()
NO_PARTS: Mapping[str, bytes] = MappingProxyType({})


class TooLargeError(ExportError):
    """Dense weights take more than one file of the format can hold."""


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
    """

    data: bytes
    lowered: Lowered
    notes: tuple[str, ...] = ()
    companions: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, bytes] = field(default_factory=dict)


class Exporter(Protocol):
    """Writes one runtime's format, and reads it back for verification.

    Attributes:
        filename: the file's name in the build folder.
        runtime: the runtime's name in reports.
        rules: how the runtime rounds where runtimes differ.
        optimizes: the runtime rewrites the graph when it loads, and can be told not to.

    An exporter may also have a `runner`, a `qn_deploy.verification.devices.runner.Runner`: then its files run on devices too.
    """

    filename: str
    runtime: str
    rules: Rules
    optimizes: bool

    def write(self, program: Program, activations: Activations, options: Options = DEFAULT) -> Written:
        """Lowers and serializes a program.

        Raises:
            ExportError: the program holds what the runtime can't take; the message names it.
        """

    def run(
        self, data: bytes, batches: tuple[Batch, ...], optimized: bool = True, parts: Mapping[str, bytes] = NO_PARTS
    ) -> tuple[Batch, ...]:
        """Runs the file's bytes on the real runtime, one result for each batch; `optimized=False` turns graph rewriting off."""

    def weight_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        """The sha256 of each constant of the written file: a table's int8 values, row-major, and every other constant as it is stored."""

    def dense(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> bytes:
        """The same program with every table expanded to plain dense weights, for the stock runtime.

        Raises:
            TooLargeError: these do not fit into one file.
        """

    def rebuild(self, companions: Mapping[str, bytes]) -> bytes:
        """What `dense` gives, byte for byte, from the companion files of a written program."""


def find_exporters() -> dict[str, Exporter]:
    """All installed exporters by name, in the order of their names."""
    return {point.name: point.load() for point in sorted(entry_points(group="qn_deploy.exporters"), key=lambda point: point.name)}
