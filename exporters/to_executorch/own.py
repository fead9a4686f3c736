"""ExecuTorch's own int8 of a float program, for comparison: torchao's PT2E flow with the XNNPACK quantizer, weights by channel."""

from __future__ import annotations

import torch

from qn_deploy.graph.dynamic_shapes import export_like
from qn_deploy.program.program import Batch, Program
from qn_deploy.quiet import quiet

from .write import lower_to_xnnpack


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
        exported = export_like(converted, program.exported, inputs)
    return lower_to_xnnpack(exported)[1]
