"""What the manifest says of a program: its tensors, each compressed weight, and how many bytes its constants take."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor
from torch.export import ExportedProgram

from qn_deploy.exporting.manifest import TensorEntry, WeightEntry
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import CompressedWeight, IntWeight
from qn_deploy.weights.packing import as_table, code_rows


def describe_inputs(program: Program) -> tuple[TensorEntry, ...]:
    """An entry for each input."""
    values = {node.name: node.meta["val"] for node in program.exported.graph.nodes if node.op == "placeholder"}
    names = program.exported.graph_signature.user_inputs
    return tuple(_tensor_entry(name, values[str(source)]) for name, source in zip(program.inputs, names, strict=True))


def describe_outputs(program: Program) -> tuple[TensorEntry, ...]:
    """An entry for each output."""
    nodes = next(node for node in program.exported.graph.nodes if node.op == "output").args[0]
    return tuple(_tensor_entry(name, node.meta["val"]) for name, node in zip(program.outputs, nodes, strict=True))


def describe_weights(program: Program) -> dict[str, WeightEntry]:
    """An entry for each compressed weight, by its name."""
    return {name: _weight_entry(weight) for name, weight in program.weights.items()}


def output_steps(lowered: ExportedProgram) -> tuple[float | None, ...]:
    """The quantization step of each output: the scale of the dequantize that makes it, or None."""
    output = next(node for node in lowered.graph.nodes if node.op == "output")
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    return tuple(float(node.args[1]) if node.target is dequantize else None for node in output.args[0])


def theoretical_bytes(program: Program) -> int:
    """Bytes of codes, centroids, scales, biases and uncompressed constants (paper section 3.3, eq. M)."""
    constants = _constants(program.exported)
    plain = sum(value.nbytes for name, value in constants.items() if name not in program.weights)
    return plain + sum(weight.nbytes for name, weight in program.weights.items() if name in constants)


def float_bytes(program: Program) -> int:
    """Bytes of all constants as they are without compression."""
    return sum(value.nbytes for value in _constants(program.exported).values())


def _constants(exported: ExportedProgram) -> dict[str, Tensor]:
    """The constants that the graph reads, by name; torch.export lets it read a tied tensor by one of its names only."""
    signature = exported.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    stored = {**exported.constants, **exported.state_dict}
    read = [node.name for node in exported.graph.nodes if node.op == "placeholder" and node.users and node.name in targets]
    return {targets[name]: stored[targets[name]] for name in read}


def _tensor_entry(name: str, value: Tensor) -> TensorEntry:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorEntry(name, str(value.dtype).removeprefix("torch."), shape)


def _weight_entry(weight: CompressedWeight) -> WeightEntry:
    digest, scale = _digest(weight.int8()), _digest(weight.scale) if weight.scale.numel() > 1 else ""
    table = as_table(weight)
    parts = () if table is None else tuple(_digest(part) for each in table.tables for part in (code_rows(each), each.centroids))
    if isinstance(weight, IntWeight):
        return WeightEntry(f"int{weight.bits}", weight.shape, weight.nbytes, digest, parts, scale=scale)
    books, size, d = weight.centroids.shape
    residual = weight.residual.centroids.shape[1] if weight.residual else 0
    return WeightEntry("table", weight.shape, weight.nbytes, digest, parts, d, books, size, residual, scale)


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
