"""ExecuTorch's own int8 of a float program, for comparison: torchao's PT2E flow with the XNNPACK quantizer, weights by channel."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import Dim

from qn_deploy.program.program import Batch, Program
from qn_deploy.quiet import quiet

from .write import lower_to_xnnpack, size_bounds


def own_int8(program: Program, inputs: Batch, is_static: bool) -> bytes:
    """The int8 `.pte`.

    Args:
        program: float.
        inputs: a batch, which ranges are taken from.
        is_static: with calibrated ranges; else those of each row are found as the program runs.
    """
    with quiet():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=not is_static)
        prepared = prepare_pt2e(program.exported.module(check_guards=False), XNNPACKQuantizer().set_global(config))
        with torch.no_grad():
            prepared(*inputs)
        converted = convert_pt2e(prepared)
        exported = torch.export.export(converted, inputs, dynamic_shapes=_dynamic(program), strict=False)
    return lower_to_xnnpack(exported)[1]


def _dynamic(program: Program) -> tuple[Any, ...] | None:
    """The dynamic sizes of a program's inputs, as `torch.export.export` takes them; None if there are none."""
    values = {node.name: node.meta["val"] for node in program.exported.graph.nodes if node.op == "placeholder"}
    dims: dict[str, Any] = {}
    shapes = []
    for name in program.exported.graph_signature.user_inputs:
        sizes = {axis: size for axis, size in enumerate(values[name].shape) if not isinstance(size, int)}
        for size in sizes.values():
            least, most = size_bounds(size.node)
            dims.setdefault(str(size), Dim(f"size{len(dims)}", min=least, max=most))
        shapes.append({axis: dims[str(size)] for axis, size in sizes.items()})
    return (tuple(shapes),) if len(shapes) > 1 and dims else tuple(shapes) if dims else None
