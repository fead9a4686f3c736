"""One compressed classifier, all the way: saved, exported, verified, and run over every test image by each thing that can run it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rows import Row, at_most
from torch import Tensor, nn

from qn_deploy.exporting.export import export
from qn_deploy.exporting.exporter import Exporter, find_exporters
from qn_deploy.exporting.manifest import Manifest
from qn_deploy.graph.lifted import unlifted
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Batch, Program
from qn_deploy.program.store import save
from qn_deploy.verification.ladder import verify

MAX_BATCH = 256
GOLDEN = 32  # test images that become the golden inputs
MAX_POINTS = 0.3  # of accuracy between the simulation and a runtime
BYTES_FACTOR, BYTES_EXTRA = 1.05, 24 * 1024  # a file against the bytes of its constants
SIMULATION, OFF, REFERENCE = "simulation", ", optimizer off", ", integer reference"


@dataclass(frozen=True)
class Labelled:
    """What accuracy is measured on: inputs float32 [N, ...], labels int64 [N]."""

    inputs: Tensor
    labels: Tensor

    def accuracy(self, logits: Tensor) -> float:
        """Share of right answers, in %, of logits [N, classes]."""
        return 100 * float((logits.argmax(1) == self.labels).double().mean())

    def run(self, call: Callable[[Tensor], Tensor], batch: int = MAX_BATCH) -> Tensor:
        """The logits [N, classes] of a model that takes at most so many inputs at once."""
        with torch.no_grad():
            return torch.cat([call(inputs) for inputs in torch.split(self.inputs, batch)])


@dataclass(frozen=True)
class Stage:
    """A measured stage: its rows, and what a later timing needs."""

    rows: list[Row]
    manifest: Manifest
    files: dict[str, bytes]  # by exporter


def measure(
    name: str,
    program: Program,
    tests: Labelled,
    folder: Path,
    progress: Callable[[str], None],
) -> Stage:
    """Takes one compressed and calibrated program down the whole road.

    Args:
        name: of the stage, the beginning of its rows' names.
        program: captured by `float_program`, then compressed.
        tests: what it is measured on.
        folder: where model.pt and the build go.
        progress: called with the name of each step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save(program, folder / "model.pt")
    manifest = export(program, folder / "build", progress=lambda stage: progress(f"{name}: {stage}")).manifest
    progress(f"{name}: climbing the parity ladder")
    report = verify(folder / "build")
    failed = [check for check in report.checks if check.rung <= 4 and check.passed is False]
    for check in failed:
        progress(f"{name}: rung {check.rung} FAILED: {check.what}: {check.found}, limit {check.limit}")
    files = {entry.exporter: (folder / "build" / file).read_bytes() for file, entry in manifest.files.items()}
    rows = [
        *_sizes(manifest),
        at_most("checks of rungs 1-4 that fail", len(failed), f"of {sum(check.rung <= 4 for check in report.checks)}", 0),
        *_over_all(program, manifest, files, tests, lambda what: progress(f"{name}: {what}")),
    ]
    return Stage([Row(f"{name}: {row.name}", row.value, row.unit, row.bar, row.met) for row in rows], manifest, files)


def float_program(model: nn.Module, tests: Labelled) -> Program:
    """The model as a program whose golden inputs are test images."""
    return capture(model, (tests.inputs[:GOLDEN],), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},))


def accuracy(program: Program, tests: Labelled) -> float:
    """Of a program with float activations, in %."""
    return tests.accuracy(tests.run(_first_output(lambda batch: unlifted(program.exported)(*batch))))


def _sizes(manifest: Manifest) -> list[Row]:
    constants = manifest.theoretical_bytes
    limit = int(BYTES_FACTOR * constants + BYTES_EXTRA)
    rows = [Row("float constants", manifest.float_bytes, "bytes"), Row("codes, centroids, scales and the rest", constants, "bytes")]
    return rows + [at_most(file, entry.bytes, "bytes", limit) for file, entry in manifest.files.items()]


def _over_all(program: Program, manifest: Manifest, files: dict[str, bytes], tests: Labelled, progress: Callable[[str], None]) -> list[Row]:
    """Accuracy of each way to run the program, and how far apart they are over all the test images."""
    exporters = find_exporters()
    lowered = lower(program, Form(Activations.STATIC))
    progress("float activations and simulation over the test images")
    rows = [Row("accuracy with float activations", accuracy(program, tests), "%")]
    logits = {SIMULATION: tests.run(_first_output(lowered.simulate))}
    bars, pairs = [], []
    for entry in manifest.files.values():
        exporter, data, runtime = exporters[entry.exporter], files[entry.exporter], entry.runtime
        progress(f"{runtime} over the test images, and its integer reference")
        logits[f"{runtime}{REFERENCE}"] = tests.run(_first_output(IntegerReference(lowered.exported, exporter.rules)))
        logits[runtime] = _logits(exporter, data, tests)
        pairs += [(runtime, f"{runtime}{REFERENCE}"), (runtime, SIMULATION)]
        if exporter.optimizes:
            logits[f"{runtime}{OFF}"] = _logits(exporter, data, tests, optimized=False)
            pairs.append((f"{runtime}{OFF}", SIMULATION))
        points = abs(tests.accuracy(logits[runtime]) - tests.accuracy(logits[SIMULATION]))
        bars.append(at_most(f"accuracy, {runtime} to {SIMULATION}", round(points, 6), "points", MAX_POINTS))
        differing = int((_logits(exporter, exporter.dense(data), tests) != logits[runtime]).sum())
        bars.append(at_most(f"logits that differ, {runtime}, tables to dense int8", differing, f"of {logits[runtime].numel():,}", 0))
    rows += [Row(f"accuracy on {what}", tests.accuracy(found), "%") for what, found in logits.items()]
    pairs += itertools.combinations([entry.runtime for entry in manifest.files.values()], 2)
    (step,) = {step for entry in manifest.files.values() for step in entry.steps}
    assert step is not None  # static activations quantize the output
    return rows + bars + [row for first, second in pairs for row in _apart(first, second, logits, step)]


def _first_output(call: Callable[[Batch], Batch]) -> Callable[[Tensor], Tensor]:
    return lambda batch: call((batch,))[0]


def _logits(exporter: Exporter, data: bytes, tests: Labelled, optimized: bool = True) -> Tensor:
    batches = tuple((batch,) for batch in torch.split(tests.inputs, MAX_BATCH))
    return torch.cat([outputs[0] for outputs in exporter.run(data, batches, optimized=optimized)])


def _apart(first: str, second: str, logits: dict[str, Tensor], step: float) -> list[Row]:
    """How far two sets of logits are apart, in quantization steps."""
    steps = ((logits[first].double() - logits[second].double()) / step).abs().round()
    what = f"{first} to {second}"
    return [
        Row(f"largest difference, {what}", float(steps.max()), "steps"),
        Row(f"logits that differ, {what}", 100 * float((steps > 0).double().mean()), "%"),
        Row(f"logits that differ by more than 1 step, {what}", 100 * float((steps > 1).double().mean()), "%"),
    ]
