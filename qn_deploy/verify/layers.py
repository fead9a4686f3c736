"""Names the layer where a runtime leaves its reference.

A program is written once more with the output of every layer among its outputs, and run; so each layer is compared with the reference's.
The layers before the first one that differs agree with the reference, bit for bit if they are exact: it was fed the reference's own inputs,
and its error is its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from qn_deploy.errors import InputError
from qn_deploy.program.build import describe as describe_weights
from qn_deploy.program.build import output_steps
from qn_deploy.program.exporter import Exporter, find_exporters
from qn_deploy.program.integer import IntegerReference
from qn_deploy.program.lower import LAYERS, Activations, dynamic_shapes
from qn_deploy.program.program import Batch, Golden, Program
from qn_deploy.program.store import load
from qn_deploy.verify.devices.device import Device
from qn_deploy.verify.devices.run import Timed, run_on
from qn_deploy.verify.isolated import Run, RuntimeFailure, run_isolated
from qn_deploy.verify.judge import MIN_SQNR_DB, Check, describe
from qn_deploy.verify.ladder import Report
from qn_deploy.verify.numerics import Agreement, compare

_aten = torch.ops.aten
_RELUS = (_aten.relu.default, _aten.relu_.default)
_OTHERS = (_aten.add.Tensor, _aten.add_.Tensor, _aten.mul.Tensor, _aten.adaptive_avg_pool2d.default, _aten.cat.default)


@dataclass(frozen=True)
class LayerAgreement:
    """One layer's output on a runtime, against the reference's."""

    name: str
    agreement: Agreement


def compare_layers(
    program: Program, activations: Activations, exporter: Exporter, run: Callable[[bytes, Batch], Batch]
) -> list[LayerAgreement]:
    """Compares a runtime with its reference, layer by layer, on the golden inputs.

    Args:
        program: as it was exported.
        activations: how its activations are quantized.
        exporter: whose files to run.
        run: runs a file's bytes on the inputs: on this machine, on a device.

    Returns:
        The layers in the graph's order. The reference is the integer reference of a static program, else the simulated program.

    Raises:
        ExportError: the program with all its layers as outputs can't be written.
    """
    names, probed = _probe(program)
    written = exporter.write(probed, activations)
    inputs = program.golden.inputs
    lowered = written.lowered
    expected = IntegerReference(lowered.exported, exporter.rules)(inputs) if activations.is_static else lowered.simulate(inputs)
    steps = output_steps(lowered.exported) if activations.is_static else [None] * len(names)
    found = run(written.data, inputs)
    return [LayerAgreement(name, compare(one, other, step)) for name, one, other, step in zip(names, found, expected, steps, strict=True)]


def first_difference(layers: list[LayerAgreement]) -> LayerAgreement | None:
    """The first layer whose output has another bit; None if there is none."""
    return next((layer for layer in layers if not layer.agreement.identical), None)


def check_layers(
    report: Report, model: Path, devices: tuple[Device, ...] = (), progress: Callable[[str], None] = lambda stage: None
) -> Report:
    """The report with a line more for each runtime and machine: the first layer that leaves the reference, and its error.

    Args:
        report: what verification found of a build folder.
        model: the model.pt that was exported into it.
        devices: other machines to run the layers on.
        progress: called with the name of each stage.

    Raises:
        InputError: the model can't be read, or has other weights than the build.
    """
    program, manifest = load(model), report.manifest
    if describe_weights(program) != manifest.weights:
        raise InputError(f"{model} has other weights than {report.folder}; give the model.pt that was exported into it")
    checks = []
    for name, entry in manifest.files.items():
        exporter = find_exporters()[entry.exporter]
        for device in (None, *devices):
            where = f"{name}{f' on {device.name}' if device else ''}"
            progress(f"{where}, layer by layer")
            checks.append(_check(where, entry.exporter, exporter, program, Activations(manifest.activations), not manifest.inexact, device))
    return replace(report, checks=tuple(sorted((*report.checks, *checks), key=lambda check: check.rung)))


def _check(
    where: str, name: str, exporter: Exporter, program: Program, activations: Activations, exact: bool, device: Device | None
) -> Check:
    def run(data: bytes, inputs: Batch) -> Batch:
        (result,) = run_on(device, name, (Run(data),), inputs) if device else run_isolated(name, (Run(data),), inputs)
        if isinstance(result, RuntimeFailure):
            raise result
        return result.outputs if isinstance(result, Timed) else result

    what = f"{where}, layer by layer"
    try:
        layers = compare_layers(program, activations, exporter, run)
    except RuntimeFailure as failure:
        return Check(3, what, str(failure), "runs", False)
    first = first_difference(layers)
    if first is None:
        return Check(3, what, f"{len(layers)} layers bit-identical", "bit-identical", True)
    found = f"first difference: {first.name}, {describe(first.agreement)}"
    if activations.is_static and exact:
        return Check(3, what, found, "bit-identical", False)
    worst = min(layers, key=lambda layer: layer.agreement.sqnr_db)
    good = worst.agreement.sqnr_db >= MIN_SQNR_DB
    return Check(3, what, f"{found}; worst: {worst.name}, {describe(worst.agreement)}", f"SQNR >= {MIN_SQNR_DB:g} dB", good)


def _probe(program: Program) -> tuple[list[str], Program]:
    """The program with the output of each layer among its outputs, and the names of these."""
    module: Any = program.exported.module(check_guards=False)  # a copy
    output = next(node for node in module.graph.nodes if node.op == "output")
    layers = {_behind(node): _name(node) for node in module.graph.nodes if node.target in (*LAYERS, *_OTHERS)}
    results = [node for node in torch.utils._pytree.tree_leaves(output.args[0]) if node not in layers]
    output.args = ((*layers, *results),)
    codegen = module.graph._codegen
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=torch.utils._pytree.tree_structure(output.args[0]))
    module.recompile()
    names = [*layers.values(), *(f"output {index}" for index in range(len(results)))]
    with torch.no_grad():
        exported = torch.export.export(module, program.golden.inputs, dynamic_shapes=dynamic_shapes(program.exported), strict=False)
        outputs = module(*program.golden.inputs)
    return names, replace(program, exported=exported, golden=Golden(program.golden.inputs, tuple(outputs)))


def _behind(layer: Node) -> Node:
    """The layer's node, or that of the ReLU which runtimes compute along with it."""
    users = list(layer.users)
    return users[0] if len(users) == 1 and users[0].target in _RELUS else layer


def _name(layer: Node) -> str:
    """The module's name for what has a weight, else the node's."""
    weight = next((source for source in layer.args if isinstance(source, Node) and source.op == "get_attr"), None)
    return str(weight.target).removesuffix(".weight") if weight is not None else layer.name
