"""Writes `.pte` files for ExecuTorch with XNNPACK, tables in place of dense constants. The blob's format: README.md beside this file."""

from __future__ import annotations

from qn_deploy.program.rules import XNNPACK

from . import read
from .pte import to_stock
from .write import write


class ExecutorchExporter:
    """The exporter for ExecuTorch; see `qn_deploy.program.exporter.Exporter`."""

    filename = "model.pte"
    runtime = "ExecuTorch XNNPACK"
    rules = XNNPACK
    optimizes = False
    write = staticmethod(write)
    run = staticmethod(read.run)
    weight_hashes = staticmethod(read.weight_hashes)
    dense = staticmethod(to_stock)


EXPORTER = ExecutorchExporter()
