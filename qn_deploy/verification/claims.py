"""What a manifest claims, held against what the files themselves tell: nothing that makes a rung less strict is only believed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qn_deploy.errors import InputError
from qn_deploy.exporting.config import options_for
from qn_deploy.exporting.describe import output_steps
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Exporter, missing, registered
from qn_deploy.exporting.manifest import Manifest
from qn_deploy.lowering.integer import inexact_operators
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.targets import TARGETS
from qn_deploy.verification.judge import Check


def check_listed(folder: Path, manifest: Manifest, exporters: Mapping[str, Exporter]) -> None:
    """Every program of an installed exporter that lies in the folder has to be in the manifest: taken out of it, it would not be checked.

    Raises:
        InputError: one is not, or the manifest lists one of an exporter that is not installed.
    """
    for name, entry in manifest.files.items():
        if entry.exporter not in exporters:
            lacks = missing(registered()[entry.exporter]) if entry.exporter in registered() else "which is not installed here"
            raise InputError(f"{name} was written by the exporter {entry.exporter!r}, {lacks}")
    for exporter in exporters.values():
        if exporter.filename not in manifest.files and (folder / exporter.filename).exists():
            raise InputError(f"{folder / exporter.filename} is not in the manifest, and would not be checked; remove it, or export again")


def check_tables(manifest: Manifest, name: str, found: set[str]) -> Check | None:
    """A line for tables which a file decodes and the manifest does not call tables, so that no other line would judge them.

    Args:
        manifest: of the build.
        name: of the file.
        found: `Exporter.table_hashes` of it.
    """
    claimed = {weight.sha256 for weight in manifest.weights.values() if weight.is_table}
    if strange := len(found - claimed):
        return Check(1, f"{name}: tables that the manifest does not list", f"{strange} of {len(found)}", "none", False)
    return None


def check_claims(manifest: Manifest, program: Program, exporters: Mapping[str, Exporter]) -> list[Check]:
    """A line for each file whose entry says something else than the program does, lowered and written once more.

    Args:
        manifest: of the build.
        program: what was exported.
        exporters: those that are installed.
    """
    checks = []
    for name, entry in manifest.files.items():
        exporter = exporters[entry.exporter]
        options = options_for(entry.exporter, exporter, manifest.config.options.get(entry.exporter, {}))
        written = write_file(exporter, program, Activations(manifest.activations), options, TARGETS[manifest.config.target])
        lowered = written.lowered
        is_static = lowered.form.activations.is_static
        told = {
            "activations": lowered.form.activations.value,
            "steps": output_steps(lowered.exported),
            "inexact": tuple(inexact_operators(lowered.exported)) if is_static else (),
            "dense": written.dense,
            "folded": written.folded,
        }
        if wrong := [key for key, value in told.items() if getattr(entry, key) != value]:
            found = "; ".join(f"{key} is {getattr(entry, key)}, {told[key]} in the program" for key in wrong)
            checks.append(Check(1, f"{name}: the manifest to the program", found, "the same", False))
    return checks
