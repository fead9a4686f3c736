"""From a container, one file that lies beside a program, to the dense program for the stock runtime."""

from __future__ import annotations

from pathlib import Path

from qn_deploy.errors import InputError
from qn_deploy.exporting.exporter import registered
from qn_deploy.files import read_bytes


def unpack(container: Path) -> bytes:
    """The program that a container stands for, byte for byte as its exporter would write it with dense weights.

    Raises:
        InputError: the file can't be read, is damaged, or is no container of an installed exporter.
    """
    data = read_bytes(container)
    exporters = registered()  # a container is read without the runtime
    exporter = next((exporter for exporter in exporters.values() if exporter.is_container(data)), None)
    if exporter is None:
        raise InputError(f"{container} is no container of the installed exporters ({', '.join(exporters)}), or its beginning is damaged")
    try:
        return exporter.rebuild({container.name: data})
    except InputError as error:
        raise InputError(f"{container}: {error}") from None
