"""Names the layers where a runtime leaves its reference.

A program is written once more with the output of every layer among its outputs, and run. The reference then computes each layer from what
the runtime made of the layers before it, so that each error is the layer's own and is not carried on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from qn_deploy.errors import InputError
from qn_deploy.exporting.config import options_for
from qn_deploy.exporting.describe import describe_weights
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Exporter, find_exporters
from qn_deploy.exporting.golden import read_vectors
from qn_deploy.exporting.isolated import Run, RuntimeFailure, run_isolated
from qn_deploy.lowering.integer import IntegerReference, Quantized, as_float, inexact_operators
from qn_deploy.lowering.lower import Activations, lower
from qn_deploy.lowering.narrow import narrow
from qn_deploy.lowering.rules import Rules
from qn_deploy.lowering.settle import is_quantized
from qn_deploy.program.program import Batch, Program
from qn_deploy.program.store import load
from qn_deploy.verification.claims import check_claims
from qn_deploy.verification.devices.device import Device
from qn_deploy.verification.devices.run import Timed, run_on
from qn_deploy.verification.judge import Check, describe
from qn_deploy.verification.numerics import Agreement, compare
from qn_deploy.verification.probe import Layer, probe
from qn_deploy.verification.report import Report

_QUANTIZE = torch.ops.quantized_decomposed.quantize_per_tensor.default

MIN_SQNR_DB = 60.0  # of one layer: floats in another order lie above 120 dB, what is quantized in one place only below 50


@dataclass(frozen=True)
class LayerAgreement:
    """One layer's own error on a runtime.

    Attributes:
        layer: what it is.
        int8: its results are quantized by one scale.
        agreement: of the layer's output with the reference's, both computed from the same inputs.
    """

    layer: Layer
    int8: bool
    agreement: Agreement

    @property
    def name(self) -> str:
        """The layer's."""
        return self.layer.name

    @property
    def exact(self) -> bool:
        """True if it must be bit-identical."""
        return self.layer.exact

    def __str__(self) -> str:
        """What it is: "conv2d, weight table, int8 by an exact rule"."""
        weight = f", weight {self.layer.weight}" if self.layer.weight else ""
        return f"{self.layer.operator}{weight}, {'int8' if self.int8 else 'float'}{' by an exact rule' if self.exact else ''}"


def compare_layers(
    program: Program, activations: Activations, exporter: Exporter, run: Callable[[bytes, Batch], Batch], options: Any = None
) -> list[LayerAgreement]:
    """Compares a runtime with its reference, layer by layer, on the golden inputs.

    Args:
        program: as it was exported.
        activations: how its activations are quantized.
        exporter: whose files to run.
        run: runs a file's bytes on the inputs: on this machine, on a device.
        options: of the exporter; None: the defaults.

    Returns:
        The layers in the graph's order, and what leads to the program's outputs. The reference is the integer reference; of a program
        that is not static, where no layer is exact, it computes as the simulated program does.

    Raises:
        ExportError: the program with all its layers as outputs can't be written.
    """
    options = exporter.options() if options is None else options
    form = exporter.forms(activations, options)[0]
    is_static = form.activations.is_static
    probed = probe(program, set(inexact_operators(lower(program, form).exported)) if is_static else set())
    written = write_file(exporter, probed.program, activations, options)
    inputs = program.golden.inputs
    negated, own = (results := run(written.data, inputs))[: len(probed.layers)], results[len(probed.layers) :]
    found = (*(-layer for layer in negated), *own)
    reference = _Forced(written.lowered.exported, exporter.rules, found, len(probed.layers))
    expected = reference.compute(inputs)
    return [
        LayerAgreement(replace(layer, exact=is_static and layer.exact), step is not None, compare(one, other, step))
        for layer, one, other, step in zip(probed.layers + probed.outputs, found, expected, reference.steps, strict=True)
    ]


class _Forced(IntegerReference):
    """Goes on with what a runtime computed wherever that is known, and keeps what it would have computed itself.

    Attributes:
        steps: the quantization step of each output; None where it is a float.
    """

    def __init__(self, exported: ExportedProgram, rules: Rules, found: Batch, negated: int) -> None:
        super().__init__(exported, rules)
        output: Any = next(node for node in self.graph.nodes if node.op == "output")
        ends = [node.args[0] if index < negated else node for index, node in enumerate(output.args[0])]
        self.steps = [float(node.args[1]) if is_quantized(node) else None for node in ends]
        self._sources = [node.args[0] if is_quantized(node) else node for node in ends]  # of a static layer, its integers
        self._found = dict(zip(self._sources, found, strict=True))
        self._computed: dict[Node, Tensor] = {}

    def compute(self, inputs: Batch) -> Batch:
        """What each output should have been, given the ones before it."""
        self(inputs)
        return tuple(self._computed[source] for source in self._sources)

    def run_node(self, node: Node) -> Any:
        """The node's value; the runtime's, where it is known."""
        value = super().run_node(node)
        if node not in self._found:
            return value
        found = self._found[node]
        if node.target is not _QUANTIZE:
            self._computed[node] = as_float(value)
            return found
        grid: Any = node.args[1:3]
        scale, zero = torch.tensor(grid[0], dtype=torch.float32), grid[1]
        self._computed[node] = as_float(Quantized(value, scale, zero))
        return ((found / scale).round() + zero).to(value.dtype)


def check_layers(
    report: Report, model: str | Path | Program, devices: tuple[Device, ...] = (), progress: Callable[[str], None] = lambda stage: None
) -> list[Check]:
    """For each file and machine a line with the layers that leave the reference, and one for each layer: what it is, and its own error.

    Args:
        report: on the build folder.
        model: the model.pt that was exported into it, or its program.
        devices: other machines to run the layers on.
        progress: called with the name of each stage.

    Raises:
        InputError: the model can't be read, or has other weights than the build.
    """
    manifest, config = report.manifest, report.manifest.config
    program = model if isinstance(model, Program) else load(model)
    if config.centroid_range is not None:
        program = narrow(program, config.centroid_range)
    if describe_weights(program) != manifest.weights:
        given = "the program" if isinstance(model, Program) else model
        raise InputError(f"{given} has other weights than {report.folder}; give the model.pt that was exported into it")
    checks = check_claims(manifest, read_vectors(Path(report.folder), manifest), program, find_exporters())
    for name, entry in manifest.files.items():
        exporter = find_exporters()[entry.exporter]
        options = options_for(entry.exporter, exporter, config.options.get(entry.exporter, {}))
        for device in (None, *devices):
            where = f"{name}{f' on {device.name}' if device else ''}"
            progress(f"{where}, layer by layer")
            checks += check_program(where, entry.exporter, exporter, program, Activations(manifest.activations), device, options)
    return checks


def check_program(
    where: str,
    name: str,
    exporter: Exporter,
    program: Program,
    activations: Activations,
    device: Device | None = None,
    options: Any = None,
) -> list[Check]:
    """The verdict on the layers of one program on one machine, and a line for each of them.

    Args:
        where: what the line calls the program and the machine.
        name: of the exporter.
        exporter: the exporter itself.
        program: as it was exported.
        activations: how its activations are quantized.
        device: another machine; None is this one.
        options: of the exporter; None: the defaults.
    """

    def run(data: bytes, inputs: Batch) -> Batch:
        (result,) = run_on(device, name, (Run(data),), inputs) if device else run_isolated(name, (Run(data),), inputs)
        if isinstance(result, RuntimeFailure):
            raise result
        return result.outputs if isinstance(result, Timed) else result

    what = f"{where}, layer by layer"
    try:
        layers = compare_layers(program, activations, exporter, run, options)
    except RuntimeFailure as failure:
        return [Check(3, what, str(failure), "runs", False)]
    lines = [Check(3, f"{where}, layer {each.name}", f"{each}: {describe(each.agreement)}", _limit(each), None) for each in layers]
    return [judge_layers(what, layers), *lines]


def _limit(layer: LayerAgreement) -> str:
    return "bit-identical" if layer.exact else f"SQNR >= {MIN_SQNR_DB:g} dB"


def judge_layers(what: str, layers: list[LayerAgreement]) -> Check:
    """The line of the report on the layers of a program: those with an exact rule must be bit-identical, the others close."""
    exact, others = [layer for layer in layers if layer.exact], [layer for layer in layers if not layer.exact]
    wrong = [layer for layer in exact if not layer.agreement.identical]
    if exact:
        listed = [f"{layer.name}: {describe(layer.agreement)}" for layer in (*wrong, *others)]
    else:  # a program of floats: each layer differs
        worst = min(others, key=lambda layer: layer.agreement.sqnr_db)
        listed = [f"worst of {len(others)}: {worst.name}, {describe(worst.agreement)}"]
    found = "; ".join([f"{len(exact) - len(wrong)} of {len(exact)} exact layers bit-identical"] * bool(exact) + listed)
    limits = dict.fromkeys(map(_limit, (*exact, *others)))
    good = not wrong and all(layer.agreement.sqnr_db >= MIN_SQNR_DB for layer in others)
    return Check(3, what, found, ", others ".join(limits), good)
