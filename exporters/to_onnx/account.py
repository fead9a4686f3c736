"""Every byte of an `.onnx`, by the weight that it belongs to and what it is."""

from __future__ import annotations

import onnx

from qn_deploy.errors import InputError
from qn_deploy.program.account import Part, plain, whole

from .modules import load
from .names import DECODED, SCALE

_KINDS = {"codes": "codes", "residual_codes": "codes", "centroids": "centroids", "residual_centroids": "centroids", "zero": "zero points"}
_KINDS |= {DECODED.strip("/"): "int8", SCALE.strip("/"): "scales"}


def account(data: bytes) -> tuple[Part, ...]:
    """The parts of a file; their bytes sum up to its size.

    Raises:
        InputError: the bytes are no ONNX program.
    """
    try:
        model = load(data)
    except InputError:
        raise
    except Exception as error:  # the decoder of protobuf raises classes of its own
        raise InputError("this is no ONNX program (.onnx), or a damaged one") from error
    parts = []
    for tensor in model.graph.initializer:
        layer, slash, suffix = tensor.name.rpartition("/")
        kind = _KINDS.get(suffix) if slash else None
        if kind is None:
            kind = plain(onnx.TensorProto.DataType.Name(tensor.data_type), len(tensor.dims))
            kind = "graph" if kind == "integers" else kind  # sizes and axes
        parts.append(Part(tensor.name if kind in ("float", "bias and norm") else layer, kind, len(tensor.raw_data)))
    return whole(parts, len(data), "graph")
