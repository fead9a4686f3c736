"""What a manifest claims, held against what the files themselves tell: nothing that makes a rung less strict is only believed."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from qn_deploy.errors import InputError
from qn_deploy.exporting.config import options_for
from qn_deploy.exporting.describe import describe_inputs, describe_outputs, float_bytes, output_steps, theoretical_bytes
from qn_deploy.exporting.export import versions, write_file
from qn_deploy.exporting.exporter import Exporter, missing, registered
from qn_deploy.exporting.golden import Vectors
from qn_deploy.exporting.manifest import GOLDEN, Manifest
from qn_deploy.lowering.integer import inexact_operators
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Batch, Program
from qn_deploy.targets import TARGETS
from qn_deploy.verification.judge import Check
from qn_deploy.verification.numerics import compare


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


def check_claims(manifest: Manifest, golden: Vectors, program: Program, exporters: Mapping[str, Exporter]) -> list[Check]:
    """What the build says, held against what its program does, lowered and written once more.

    The manifest and the golden vectors have a line where they differ from the program. Each file has one in any case: written by the
    versions that are installed here it has to be the same byte for byte, so that no constant of it can have been changed.

    Args:
        manifest: of the build.
        golden: of the build.
        program: what was exported.
        exporters: those that are installed.
    """
    checks = []
    if wrong := _untrue(manifest, program):
        checks.append(Check(1, "the manifest to the program", f"other {', '.join(wrong)}", "the same", False))
    if not (_equal(golden.inputs, program.golden.inputs) and _equal(golden.floats, program.golden.outputs)):
        checks.append(Check(1, f"{GOLDEN} to the program", "other inputs or float outputs", "the same", False))
    others = [f"{name} {version}" for name, version in versions().items() if manifest.versions.get(name) != version]
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
            "memory": dict(written.memory),
        }
        if wrong := [key for key, value in told.items() if getattr(entry, key) != value]:
            found = "; ".join(f"{key} is {getattr(entry, key)}, {told[key]} in the program" for key in wrong)
            checks.append(Check(1, f"{name}: the manifest to the program", found, "the same", False))
        stated = {name: entry.sha256, **{each: beside.sha256 for each, beside in {**entry.companions, **entry.parts}.items()}}
        same = stated == {
            each: sha256(data).hexdigest() for each, data in {name: written.data, **written.companions, **written.parts}.items()
        }
        found = "byte-identical" if same else f"other bytes{f'; here is {others[0]}' if others else ''}"
        checks.append(
            Check(1, f"{name} to the program, written again", found, "byte-identical", True if same else None if others else False)
        )
    return checks


def _untrue(manifest: Manifest, program: Program) -> list[str]:
    """What the manifest says otherwise than the program."""
    told = {
        "inputs": describe_inputs(program),
        "outputs": describe_outputs(program),
        "theoretical_bytes": theoretical_bytes(program),
        "float_bytes": float_bytes(program),
        "left": program.left,
    }
    return [key for key, value in told.items() if getattr(manifest, key) != value]


def _equal(found: Batch, expected: Batch) -> bool:
    pairs = zip(found, expected, strict=False)
    return len(found) == len(expected) and all(one.shape == other.shape and compare(one, other).identical for one, other in pairs)
