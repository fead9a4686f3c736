"""Every byte of a file that this package writes, or of a folder of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qn_deploy.errors import InputError, ToolchainError
from qn_deploy.exporting.exporter import missing, registered
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, REPORT, read_manifest
from qn_deploy.files import read_bytes
from qn_deploy.program import container
from qn_deploy.program.account import Part, account_of_model
from qn_deploy.program.members import read_directory, read_members

_ZIP = b"PK\3\4"
_BESIDE = {MANIFEST: "manifest", GOLDEN: "examples", REPORT: "report"}  # files of a build that are no program, and what they hold


def account(path: Path) -> dict[str, tuple[Part, ...]]:
    """The parts of each file, by its name; those of a file sum up to its size.

    Args:
        path: a model.pt, a program or container of an installed exporter, or a build folder.

    Raises:
        InputError: it can't be read, or is none of these.
        ToolchainError: what reads it is not installed.
    """
    if path.is_dir():
        manifest = read_manifest(path)
        report = [REPORT] * (path / REPORT).exists()
        return {name: _file(path / name, True) for name in (MANIFEST, *sorted(manifest.listed), *report)}
    return {path.name: _file(path)}


def _file(path: Path, in_build: bool = False) -> tuple[Part, ...]:
    data = read_bytes(path)
    if in_build and path.name in _BESIDE:
        return (Part("", _BESIDE[path.name], len(data)),)
    if data.startswith(_ZIP) and container.MANIFEST in [entry.filename for entry in read_directory(data)]:
        return account_of_model(read_members(data), len(data))
    for exporter in registered().values():
        found: Callable[[bytes], tuple[Part, ...]] | None = getattr(exporter, "account", None)
        if found is not None and (path.suffix == Path(exporter.filename).suffix or exporter.is_container(data)):
            if reason := missing(exporter):
                raise ToolchainError(f"{path}: {reason}")
            try:
                return found(data)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None
    if in_build:  # a part or companion of an exporter that tells no more of it
        return (Part("", "tables" if path.suffix == ".safetensors" else "program", len(data)),)
    raise InputError(f"{path} is neither a model.pt nor a program or container of the exporters {', '.join(registered())}")
