"""Export: a Program becomes a build folder with one file for each runtime, golden vectors and a manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from qn_deploy.errors import ExportError, InputError, ToolchainError
from qn_deploy.exporting.build import Build
from qn_deploy.exporting.collapse import collapsed
from qn_deploy.exporting.config import ExportConfig, options_for
from qn_deploy.exporting.describe import describe_inputs, describe_outputs, describe_weights, float_bytes, output_steps, theoretical_bytes
from qn_deploy.exporting.exporter import Exporter, Written, find_exporters, missing, registered, unknown
from qn_deploy.exporting.folder import check_place, replacing
from qn_deploy.exporting.golden import Vectors
from qn_deploy.exporting.isolated import Child
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, BesideEntry, FileEntry, Manifest, listed_names
from qn_deploy.exporting.trial import try_files
from qn_deploy.lowering.integer import IntegerReference, inexact_operators
from qn_deploy.lowering.lower import Activations, Form, Lowered, choose_activations, lower
from qn_deploy.lowering.narrow import narrow
from qn_deploy.memory import give_back
from qn_deploy.program.program import Program
from qn_deploy.targets import DEFAULT_TARGET, TARGETS, Target

_VERSIONED = ("qn-deploy", "torch", "executorch", "onnx", "onnxruntime")
_DEFAULT = ExportConfig()


def export(
    program: Program, folder: str | Path, config: ExportConfig = _DEFAULT, progress: Callable[[str], None] = lambda stage: None
) -> Build:
    """Writes a build folder: a file for each exporter, golden.safetensors, manifest.json.

    Everything is made in memory first, and each file is loaded and run once in a child process. Then the folder is replaced as a whole: an
    earlier build stays until the new one is on the disk, and a failed export leaves it as it was. Files in the folder that no export wrote
    are carried over. Two exports into one folder at once: the second waits for the first.

    Args:
        program: what to export.
        folder: made if it is missing.
        config: where it is to run, how activations are quantized, and what exporters may choose.
        progress: called with the name of each stage.

    Raises:
        InputError: an exporter that is named is not installed, an option is not one of its own, or the folder can't be written.
        ToolchainError: no exporter's runtime is installed.
        ExportError: a runtime can't take the program, or an output became constant.
    """
    folder = Path(folder)
    check_place(folder)
    chosen = _chosen(config)
    options = {name: options_for(name, exporter, config.options.get(name, {})) for name, exporter in chosen.items()}
    activations = _activations(program, config, chosen, options)
    if config.centroid_range is not None:
        program = narrow(program, config.centroid_range)
    with Child() as child:  # starts while this process lowers
        form = cache(partial(lower, program, dense={}))  # exporters that want the same form get the same
        written: dict[str, Written] = {}
        for name, exporter in chosen.items():
            progress(f"writing {exporter.filename}")
            written[name] = write_file(exporter, program, activations, options[name], TARGETS[config.target], form)
            give_back()
        progress("running the simulated program")
        vectors = _golden(program, chosen, written)
        if not config.allow_constant:
            _refuse_collapsed(program, vectors)
        progress("running each file once")
        try_files(chosen, written, vectors.inputs, vectors.simulated, child)
    golden = vectors.to_bytes()
    manifest = Manifest(
        config=config,
        activations=activations.value,
        inputs=describe_inputs(program),
        outputs=describe_outputs(program),
        files={exporter.filename: _file_entry(name, exporter, written[name]) for name, exporter in chosen.items()},
        golden_bytes=len(golden),
        golden_sha256=_sha256(golden),
        weights=describe_weights(program),
        theoretical_bytes=theoretical_bytes(program),
        float_bytes=float_bytes(program),
        versions=versions(),
        recipe=json.loads(program.recipe.to_json()) if program.recipe else None,
        left=program.left,
    )
    progress(f"saving to {folder}")
    files = {GOLDEN: golden}
    for name, exporter in chosen.items():
        files |= {exporter.filename: written[name].data, **written[name].companions, **written[name].parts}
    with replacing(folder, listed_names, progress) as write:
        write({**files, MANIFEST: manifest.to_json().encode()})
    return Build(folder, manifest)


def write_file(
    exporter: Exporter,
    program: Program,
    activations: Activations,
    options: Any = None,
    target: Target = TARGETS[DEFAULT_TARGET],
    form: Callable[[Form], Lowered] | None = None,
) -> Written:
    """One file: the program is lowered as its exporter wants it, and written.

    Args:
        exporter: whose file.
        program: what to write.
        activations: how activations are quantized.
        options: an instance of the exporter's `options`; None: the defaults.
        target: where the file is to run.
        form: lowers the program; None takes `lower`.

    Raises:
        ExportError: the runtime can't take the program, or not with these activations.
    """
    options = exporter.options() if options is None else options
    form = form or partial(lower, program)
    return exporter.write(program, tuple(form(wanted) for wanted in exporter.forms(activations, options)), options, target)


def versions() -> dict[str, str]:
    """The versions of what a file's bytes depend on, by distribution; without those that are not installed."""
    found = {}
    for name in _VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _chosen(config: ExportConfig) -> dict[str, Exporter]:
    exporters = find_exporters()
    if strange := sorted({*config.only, *config.options} - set(exporters)):
        raise InputError(unknown(strange, exporters))
    if not exporters:
        raise ToolchainError("; ".join(["no runtime is installed", *(missing(exporter) for exporter in registered().values())]))
    return {name: exporter for name, exporter in exporters.items() if not config.only or name in config.only}


def _activations(program: Program, config: ExportConfig, exporters: Mapping[str, Exporter], options: Mapping[str, Any]) -> Activations:
    """As asked; else by default, and float where an exporter, with these options, takes nothing else."""
    if config.activations is not None:
        return choose_activations(program, Activations(config.activations))
    default = Activations.STATIC if program.ranges else Activations.DYNAMIC
    try:
        for name, exporter in exporters.items():
            exporter.forms(default, options[name])
    except ExportError:
        return Activations.NONE
    return choose_activations(program, default)


def _golden(program: Program, exporters: Mapping[str, Exporter], written: Mapping[str, Written]) -> Vectors:
    inputs = program.golden.inputs
    return Vectors(
        inputs=inputs,
        floats=program.golden.outputs,
        simulated={name: result.lowered.simulate(inputs) for name, result in written.items()},
        references={
            name: IntegerReference(result.lowered.exported, exporters[name].rules)(inputs)
            for name, result in written.items()
            if result.lowered.form.activations.is_static
        },
    )


def _refuse_collapsed(program: Program, golden: Vectors) -> None:
    for name, simulated in golden.simulated.items():
        for output, found, expected in zip(program.outputs, simulated, golden.floats, strict=True):
            if (reason := collapsed(found, expected)) is not None:
                raise ExportError(
                    f"the output {output} is lost in the program for {name}: {reason}. Calibrate with data like the model's own, give what "
                    "differs much in range as an output of its own, or keep activations float (--activations none). "
                    "--allow-constant exports it as it is"
                )


def _file_entry(name: str, exporter: Exporter, written: Written) -> FileEntry:
    lowered = written.lowered
    is_static = lowered.form.activations.is_static
    companions, parts = (
        {beside: BesideEntry(len(data), _sha256(data)) for beside, data in files.items()} for files in (written.companions, written.parts)
    )
    return FileEntry(
        exporter=name,
        runtime=exporter.runtime,
        bytes=len(written.data),
        sha256=_sha256(written.data),
        activations=lowered.form.activations.value,
        steps=output_steps(lowered.exported),
        notes=written.notes,
        companions=companions,
        facts=dict(written.facts),
        parts=parts,
        inexact=tuple(inexact_operators(lowered.exported)) if is_static else (),
        dense=written.dense,
        folded=written.folded,
        memory=dict(written.memory),
    )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
