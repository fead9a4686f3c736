"""onnxruntime's own int8 of a float model, for comparison: its quantization tools, weights by channel, uint8 activations."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from qn_deploy.quiet import quiet


class _Once(CalibrationDataReader):  # type: ignore[misc]
    """One batch, as the tools ask for it."""

    def __init__(self, batch: Mapping[str, np.ndarray]) -> None:
        self._batches = iter([dict(batch)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The batch, then None."""
        return next(self._batches, None)


def own_int8(plain: bytes, inputs: Mapping[str, np.ndarray], is_static: bool) -> bytes:
    """The int8 model.

    Args:
        plain: a float model.
        inputs: a batch by the names of the model's inputs, which ranges are taken from.
        is_static: with calibrated ranges, in q/dq form; else ranges are found as the model runs.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, ready, target = (str(Path(folder) / name) for name in ("float.onnx", "ready.onnx", "int8.onnx"))
        model = onnx.load_model_from_string(plain)
        del model.graph.value_info[:]  # shapes of weights, which quantize_dynamic transposes
        onnx.save(model, source)
        quant_pre_process(source, ready, skip_optimization=True, skip_symbolic_shape=True)
        if is_static:
            kinds = {"quant_format": QuantFormat.QDQ, "activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
            quantize_static(ready, target, _Once(inputs), per_channel=True, **kinds)
        else:
            quantize_dynamic(ready, target, per_channel=True, weight_type=QuantType.QInt8)
        return Path(target).read_bytes()
