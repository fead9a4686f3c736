"""The dimensions of an exported graph that may change from run to run, and inputs that leave them open."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


def dynamic_shapes(exported: ExportedProgram) -> Any:
    """The dynamic shapes that `exported` was captured with, for its tensor inputs in the form torch.export.export takes; None if all are
    fixed.
    """
    names = set(exported.graph_signature.user_inputs)
    dims: dict[str, Any] = {}
    shapes = []
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names and isinstance(node.meta.get("val"), Tensor):
            shapes.append(
                {axis: _dim(size, exported, dims) for axis, size in enumerate(node.meta["val"].shape) if not isinstance(size, int)}
            )
    return tuple(shapes) if any(shapes) else None


def doubled(exported: ExportedProgram, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, those of one sample twice where the graph has a dynamic batch: torch.export takes 1 as fixed."""
    names = exported.graph_signature.user_inputs
    values = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder" and node.name in names]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return tuple(
        torch.cat([x, x]) if x.ndim and len(x) == 1 and not isinstance(value.shape[0], int) else x
        for x, value in zip(inputs, tensors, strict=True)
    )


def export_like(graph_module: nn.Module, exported: ExportedProgram, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """A graph that was made of an exported one, exported with the same dynamic shapes.

    Args:
        graph_module: takes the inputs that `exported` takes.
        exported: whose dynamic shapes it has.
        inputs: example tensors; one sample is enough.
    """
    with torch.no_grad():
        return torch.export.export(graph_module, doubled(exported, inputs), dynamic_shapes=dynamic_shapes(exported), strict=False)


def _dim(size: torch.SymInt, exported: ExportedProgram, dims: dict[str, Any]) -> Any:
    symbol = size.node.expr
    if not symbol.is_Symbol:
        return torch.export.Dim.AUTO  # derived from another dimension, as 2*s0: torch.export finds the relation again
    bounds = exported.range_constraints[symbol]
    upper = int(bounds.upper) if bounds.upper.is_finite and bounds.upper < 2**31 else None
    return dims.setdefault(str(symbol), torch.export.Dim(str(symbol), min=max(int(bounds.lower), 0), max=upper))
