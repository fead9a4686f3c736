"""Writes `.onnx` files that stock onnxruntime runs: standard operators, weights as codes and centroids, int8 activations."""

from __future__ import annotations

from qn_deploy.lowering.rules import ONNXRUNTIME

from . import read, shell
from .runner import RUNNER
from .write import write


class OnnxExporter:
    """The exporter for onnxruntime; see `qn_deploy.exporting.exporter.Exporter`."""

    filename = "model.onnx"
    runtime = "onnxruntime"
    rules = ONNXRUNTIME
    runner = RUNNER
    optimizes = True
    write = staticmethod(write)
    run = staticmethod(read.run)
    weight_hashes = staticmethod(read.weight_hashes)
    dense = staticmethod(read.dense)
    rebuild = staticmethod(shell.join)


EXPORTER = OnnxExporter()
