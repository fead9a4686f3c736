"""The dimensions of an exported graph that may change from run to run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
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


def _dim(size: torch.SymInt, exported: ExportedProgram, dims: dict[str, Any]) -> Any:
    symbol = size.node.expr
    if not symbol.is_Symbol:
        return torch.export.Dim.AUTO  # derived from another dimension, as 2*s0: torch.export finds the relation again
    bounds = exported.range_constraints[symbol]
    upper = int(bounds.upper) if bounds.upper.is_finite and bounds.upper < 2**31 else None
    return dims.setdefault(str(symbol), torch.export.Dim(str(symbol), min=max(int(bounds.lower), 0), max=upper))
