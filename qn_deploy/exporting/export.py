"""Export: a Program becomes a build folder with one file for each runtime, golden vectors and a manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.exporting.exporter import DEFAULT, Exporter, Options, Written, find_exporters
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, BesideEntry, FileEntry, Manifest, TensorEntry, WeightEntry
from qn_deploy.files import make_folder, write_atomic
from qn_deploy.lowering.integer import IntegerReference, inexact_operators
from qn_deploy.lowering.lower import Activations, input_names
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import CompressedWeight, IntWeight
from qn_deploy.weights.packing import as_table, code_rows

_VERSIONED = ("qn-deploy", "torch", "executorch", "onnx", "onnxruntime")


def export(
    program: Program,
    activations: Activations,
    folder: Path,
    target: str,
    only: tuple[str, ...] = (),
    progress: Callable[[str], None] = lambda stage: None,
    options: Options = DEFAULT,
) -> Manifest:
    """Writes a build folder: a file for each exporter, golden.safetensors, manifest.json.

    Everything is made in memory first and the manifest is written last, so a failed export leaves an earlier build as it was.

    Args:
        program: what to export.
        activations: how activations are quantized, see `choose_activations`.
        folder: made if it is missing.
        target: name of the target, for the manifest.
        only: names of the exporters to use; all that are installed if empty.
        progress: called with the name of each stage.
        options: what the exporters may choose.

    Raises:
        InputError: an exporter in `only` is not installed, or the folder can't be written.
        ExportError: a runtime can't take the program.
    """
    exporters = find_exporters()
    if unknown := sorted(set(only) - set(exporters)):
        raise InputError(f"no exporter named {', '.join(unknown)} is installed; there are {', '.join(exporters)}")
    chosen = {name: exporter for name, exporter in exporters.items() if not only or name in only}
    written: dict[str, Written] = {}
    for name, exporter in chosen.items():
        progress(f"writing {exporter.filename}")
        written[name] = exporter.write(program, activations, options)
    progress("running the simulated program")
    golden = save_tensors(_golden(program, activations, chosen, written))
    manifest = _manifest(program, activations, target, chosen, written, golden)
    progress(f"saving to {folder}")
    make_folder(folder)
    for name, exporter in chosen.items():
        write_atomic(folder / exporter.filename, written[name].data)
        for beside, data in {**written[name].companions, **written[name].parts}.items():
            write_atomic(folder / beside, data)
    write_atomic(folder / GOLDEN, golden)
    write_atomic(folder / MANIFEST, manifest.to_json().encode())
    return manifest


def _golden(program: Program, activations: Activations, exporters: dict[str, Exporter], written: dict[str, Written]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}

    def keep(prefix: str, batch: tuple[Tensor, ...]) -> None:
        tensors.update({f"{prefix}/{index}": tensor.detach().clone().contiguous() for index, tensor in enumerate(batch)})

    keep("input", program.golden.inputs)
    keep("float", program.golden.outputs)
    for name, result in written.items():
        keep(f"simulated/{name}", result.lowered.simulate(program.golden.inputs))
        if activations.is_static:
            keep(f"reference/{name}", IntegerReference(result.lowered.exported, exporters[name].rules)(program.golden.inputs))
    return tensors


def _manifest(
    program: Program,
    activations: Activations,
    target: str,
    exporters: dict[str, Exporter],
    written: dict[str, Written],
    golden: bytes,
) -> Manifest:
    exported = program.exported
    lowered = next(iter(written.values())).lowered.exported
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    steps = output_steps(lowered) if activations.is_static else [None] * len(program.golden.outputs)
    output_nodes = next(node for node in exported.graph.nodes if node.op == "output").args[0]
    outputs = [node.meta["val"] for node in output_nodes]
    names = ["output"] if len(outputs) == 1 else [f"output_{index}" for index in range(len(outputs))]
    constants = _constants(exported)
    return Manifest(
        target=target,
        activations=activations.value,
        inputs=tuple(_tensor_entry(name, values[name]) for name in input_names(exported)),
        outputs=tuple(_tensor_entry(name, value, step) for name, value, step in zip(names, outputs, steps, strict=True)),
        files={exporter.filename: _file_entry(name, exporter.runtime, written[name]) for name, exporter in exporters.items()},
        golden_sha256=_sha256(golden),
        weights=describe(program),
        theoretical_bytes=theoretical_bytes(program),
        float_bytes=sum(value.nbytes for value in constants.values()),
        versions={name: importlib.metadata.version(name) for name in _VERSIONED},
        inexact=tuple(inexact_operators(lowered)) if activations.is_static else (),
        recipe=json.loads(program.recipe.to_json()) if program.recipe else None,
        left=program.left,
    )


def _file_entry(exporter: str, runtime: str, written: Written) -> FileEntry:
    companions, parts = (
        {name: BesideEntry(len(data), _sha256(data)) for name, data in files.items()} for files in (written.companions, written.parts)
    )
    return FileEntry(exporter, runtime, len(written.data), _sha256(written.data), written.notes, companions, dict(written.facts), parts)


def theoretical_bytes(program: Program) -> int:
    """Bytes of codes, centroids, scales, biases and uncompressed constants (paper section 3.3, eq. M)."""
    constants = _constants(program.exported)
    plain = sum(value.nbytes for name, value in constants.items() if name not in program.weights)
    return plain + sum(weight.nbytes for name, weight in program.weights.items() if name in constants)


def _constants(exported: torch.export.ExportedProgram) -> dict[str, Tensor]:
    """The constants that the graph reads, by name; torch.export lets it read a tied tensor by one of its names only."""
    signature = exported.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    stored = {**exported.constants, **exported.state_dict}
    read = [node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users and node.name in targets]
    return {targets[name]: stored[targets[name]] for name in read}


def output_steps(lowered: torch.export.ExportedProgram) -> list[float | None]:
    """The quantization step of each output: the scale of the dequantize that makes it, or null."""
    output = next(node for node in lowered.graph.nodes if node.op == "output")
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    return [float(node.args[1]) if node.target is dequantize else None for node in output.args[0]]


def _tensor_entry(name: str, value: Tensor, step: float | None = None) -> TensorEntry:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorEntry(name, str(value.dtype).removeprefix("torch."), shape, step)


def describe(program: Program) -> dict[str, WeightEntry]:
    """What the manifest says of each compressed weight, by its name."""
    return {name: _weight_entry(weight) for name, weight in program.weights.items()}


def _weight_entry(weight: CompressedWeight) -> WeightEntry:
    digest = _digest(weight.int8())
    table = as_table(weight)
    parts = () if table is None else tuple(_digest(part) for each in table.tables for part in (code_rows(each), each.centroids))
    if isinstance(weight, IntWeight):
        return WeightEntry(f"int{weight.bits}", weight.shape, weight.nbytes, digest, parts)
    books, size, d = weight.centroids.shape
    residual = weight.residual.centroids.shape[1] if weight.residual else 0
    return WeightEntry("table", weight.shape, weight.nbytes, digest, parts, d, books, size, residual)


def _digest(tensor: Tensor) -> str:
    return _sha256(tensor.contiguous().numpy().tobytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
