"""What the files of a build are measured beside: the same int8 program without tables, the float model, and the runtime's own int8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from qn_deploy.bench.measure import Subject, Times, measure
from qn_deploy.errors import ExportError, InputError, first_line
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters, unknown
from qn_deploy.exporting.golden import read_vectors
from qn_deploy.exporting.manifest import Manifest, read_listed, read_manifest
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Batch, Program

TABLES, DENSE, FLOAT, OWN = "tables", "dense int8", "float", "the runtime's own int8"


def bench(
    folder: Path,
    program: Program | None,
    batches: tuple[int, ...] = (1,),
    rounds: int = 40,
    progress: Callable[[str], None] = lambda stage: None,
) -> list[Times]:
    """Measures the files of a build, the dense int8 program of each, and, of a given model, float and the runtimes' own int8; all in turn.

    Args:
        folder: of the build.
        program: that was exported; None leaves float and the runtimes' own int8 out.
        batches: sizes of the batch, made of the build's example inputs.
        rounds: how often each program runs.
        progress: called with the name of each stage.

    Raises:
        InputError: the folder holds no build, or a program does not take such a batch.
    """
    manifest = read_manifest(folder)
    inputs = read_vectors(folder, manifest).inputs
    wanted = [_of_size(inputs, manifest, size) for size in batches]
    subjects = list(_subjects(folder, manifest, program, inputs, progress))
    progress(f"{len(subjects)} programs in turn, batch {', '.join(map(str, batches))}")
    return measure(subjects, wanted, rounds)


def _subjects(
    folder: Path, manifest: Manifest, program: Program | None, inputs: Batch, progress: Callable[[str], None]
) -> Iterator[Subject]:
    exporters = find_exporters()
    for name, entry in manifest.files.items():
        exporter = exporters.get(entry.exporter)
        if exporter is None:
            raise InputError(f"{name}: {unknown([entry.exporter], exporters)}")
        data = read_listed(folder, name, manifest)
        parts = {part: read_listed(folder, part, manifest) for part in entry.parts}
        yield Subject(f"{name}, {TABLES}", entry.exporter, data, parts)
        yield Subject(f"{name}, {DENSE}", entry.exporter, exporter.dense(data, parts), {})
        if program is None:
            continue
        progress(f"writing the float model for {entry.runtime}")
        whole = replace(program, weights={})
        try:
            plain = write_file(exporter, whole, Activations.NONE)
        except ExportError as error:
            raise InputError(f"the float model can't be written for {entry.runtime}: {error}") from None
        yield Subject(f"{name}, {FLOAT}", entry.exporter, plain.data, plain.parts)
        own: Callable[[Program, bytes, Batch, bool], bytes] | None = getattr(exporter, "own_int8", None)
        if own is None or entry.activations == Activations.NONE.value:
            continue
        progress(f"{entry.runtime}'s own int8")
        try:
            yield Subject(f"{name}, {OWN}", entry.exporter, own(whole, plain.data, inputs, entry.is_static), {})
        except Exception as error:  # tools of others raise many classes; without them the rest is measured all the same
            progress(f"{entry.runtime}'s own int8 is left out: {first_line(error)[:200]}")


def _of_size(inputs: Batch, manifest: Manifest, size: int) -> Batch:
    """The example inputs, cut or repeated to a batch of `size`."""
    found = []
    for tensor, entry in zip(inputs, manifest.inputs, strict=True):
        if not entry.shape or (entry.shape[0] is not None and entry.shape[0] != size):
            raise InputError(f"the input {entry.name} has a fixed batch of {entry.shape[:1]}; leave --batch {size} out")
        copies = -(-size // len(tensor))
        found.append(torch.cat([tensor] * copies)[:size].contiguous())
    return tuple(found)
