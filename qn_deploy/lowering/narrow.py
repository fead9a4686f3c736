"""Int8 weights in a narrower range, for x86 processors without VNNI: their kernels add pairs of u8 * s8 products in int16, which saturates.

255 * 64 * 2 = 32,640 still fits, so weights within -64..64 give exact sums without any session option, for one bit of precision.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from qn_deploy.graph.lifted import with_constants
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight, to_int8

EXACT_IN_PAIRS = 64


def narrow(program: Program, limit: int) -> Program:
    """A program whose int8 weights are within -limit..limit; each scale grows as its values shrink.

    Args:
        program: it is not changed. Its float outputs, which the loss is measured against, stay.
        limit: 1 to 127.
    """
    weights = {name: _narrowed(weight, limit) for name, weight in program.weights.items()}
    values = {name: weight.dequantize() for name, weight in weights.items() if weight is not program.weights[name]}
    return replace(program, exported=with_constants(program.exported, values), weights=weights)


def _narrowed(weight: CompressedWeight, limit: int) -> CompressedWeight:
    residual = weight.residual if isinstance(weight, PQWeight) else None
    if int(weight.int8().abs().max()) <= limit:
        return weight
    # Two tables are rounded each for itself, so that their sum can be a step too large, and the decoder clamps it at 127 only.
    largest = _largest_sum(weight, residual) if isinstance(weight, PQWeight) and residual else int(weight.int8().abs().max())
    factor = (limit - 1 if residual else limit) / largest

    def scaled(values: Tensor) -> Tensor:
        return to_int8(values.double() * factor).to(torch.int8)

    if isinstance(weight, IntWeight):
        return replace(weight, values=scaled(weight.values), scale=weight.scale / factor)
    if residual is not None:
        residual = replace(residual, centroids=scaled(residual.centroids), scale=weight.scale / factor)
    return replace(weight, centroids=scaled(weight.centroids), scale=weight.scale / factor, residual=residual)


def _largest_sum(first: PQWeight, second: PQWeight) -> int:
    return int((replace(first, residual=None).int8().to(torch.int16) + second.int8()).abs().max())
