"""No dead file: what export wrote is loaded and run once, in a child process, before it takes its place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from qn_deploy.errors import ExportError
from qn_deploy.exporting.exporter import Exporter, Written
from qn_deploy.exporting.isolated import Child, Run, RuntimeFailure
from qn_deploy.lowering.lower import Lowered
from qn_deploy.program.program import Batch

_QUOTED = re.compile(r"'([\w./]+)'")  # a node's name, as onnxruntime quotes it
_OPERATOR = re.compile(r"(\w+)::(\w+)|\b(?:running|implementation for|found for) ([A-Z]\w+)")  # as ExecuTorch and onnxruntime name one


def try_files(
    exporters: Mapping[str, Exporter], written: Mapping[str, Written], inputs: Batch, expected: Mapping[str, Batch], child: Child
) -> None:
    """Runs each file once on the golden inputs, all in one child.

    Args:
        exporters: those that wrote a file, by name.
        written: their files.
        inputs: the golden inputs.
        expected: outputs of each file's simulated program, whose form the file's own must have. Their values are judged by `verify`.
        child: where to run them.

    Raises:
        ExportError: a runtime refuses a file, crashes, does not end, or gives something of another form; the message names the file, the
            operator and the layer where the runtime tells them, and the way out.
    """
    names = list(written)
    results = child.run([(name, Run(written[name].data, parts=written[name].parts)) for name in names], inputs)
    for name, result in zip(names, results, strict=False):  # after a crash the rest was not tried; the crash is told first
        if words := complaint(exporters[name], written[name].lowered, result, expected[name]):
            others = " ".join(f"--only {other}" for other in names if other != name)
            raise ExportError(f"{words}; nothing was written" + (f". Leave this file out: {others}" if others else ""))


def complaint(exporter: Exporter, lowered: Lowered, result: Batch | RuntimeFailure, expected: Batch) -> str:
    """What is wrong with a file, by what its runtime made of it; empty if it is alive.

    Args:
        exporter: that wrote it.
        lowered: the program in it.
        result: of the run.
        expected: outputs of the simulated program.
    """
    if isinstance(result, RuntimeFailure):
        where = blame(str(result), lowered)
        return f"{exporter.filename} does not run on {exporter.runtime}{f', at {where}' if where else ''}: {str(result).rstrip('.')}"
    difference = _difference(result, expected)
    return f"{exporter.filename} on {exporter.runtime} gives {difference}" if difference else ""


def blame(message: str, lowered: Lowered) -> str:
    """The operator and layer of the program that a runtime's message is about; empty if it names none."""
    nodes = [node for node in lowered.exported.graph.nodes if node.op == "call_function"]
    quoted = {part.removeprefix("node_") for part in _QUOTED.findall(message)}
    for node in nodes:
        if node.name in quoted:
            return _named(node, lowered)
    for space, name, foreign in _OPERATOR.findall(message):
        operator = name.removesuffix("_out") if space else re.sub(r"(?<=[a-z])(?=[A-Z])", "_", foreign).lower()
        found = [node for node in nodes if _operator(node).rpartition(".")[2] == operator]
        if len(found) == 1:
            return _named(found[0], lowered)
        if space or found:
            return f"the operator {space + '.' if space else ''}{operator}" + (f" ({len(found)} of them)" if found else "")
    return ""


def _operator(node: Any) -> str:
    """As aten.conv2d; without the overload."""
    return str(node.target).rpartition(".")[0] or str(node.target)


def _named(node: Any, lowered: Lowered) -> str:
    """As `aten.conv2d of the layer stem`; by its own name where it has no constant that a layer could be named by."""
    constants = {**lowered.exported.graph_signature.inputs_to_parameters, **lowered.exported.graph_signature.inputs_to_buffers}
    behind = list(node.all_input_nodes)
    behind += [source for first in behind for source in first.all_input_nodes]  # through a dequantize
    layer = next((constants[source.name].rpartition(".")[0] for source in behind if source.name in constants), "")
    return f"{_operator(node)} of the layer {layer}" if layer else f"{_operator(node)} ({node.name})"


def _difference(found: Batch, expected: Batch) -> str:
    """How the outputs differ in form from what they should be; empty if they don't."""
    forms = [[(tensor.dtype, tensor.shape) for tensor in batch] for batch in (found, expected)]
    if forms[0] != forms[1]:
        told = [", ".join(f"{str(kind).removeprefix('torch.')} {list(shape)}" for kind, shape in form) or "nothing" for form in forms]
        return f"{told[0]} where the program gives {told[1]}"
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not torch.isfinite(one).all() and torch.isfinite(other).all():
            return f"NaN or infinity in output {index}, where the program gives numbers"
    return ""
