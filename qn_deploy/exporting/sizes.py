"""How large a program is in an exporter's own format, without a build folder."""

from __future__ import annotations

from collections.abc import Callable

from qn_deploy.errors import InputError
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters, unknown
from qn_deploy.lowering.lower import Activations, choose_activations
from qn_deploy.program.program import Program


def written_size(name: str) -> Callable[[Program], int]:
    """A function that tells the bytes of a program's file, and of those that have to lie beside it.

    Args:
        name: of the exporter.

    Raises:
        InputError: no such exporter is installed.
    """
    exporters = find_exporters()
    if name not in exporters:
        raise InputError(unknown([name], exporters))

    def size(program: Program) -> int:
        activations = choose_activations(program, Activations.STATIC if program.ranges else Activations.DYNAMIC)
        written = write_file(exporters[name], program, activations)
        return len(written.data) + sum(map(len, written.parts.values()))

    return size
