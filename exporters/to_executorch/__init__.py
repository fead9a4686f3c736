"""Writes `.pte` files for ExecuTorch with XNNPACK, tables in place of dense constants. The blob's format: README.md beside this file."""

from __future__ import annotations

from collections.abc import Mapping

from qn_deploy.exporting.exporter import NO_PARTS
from qn_deploy.lowering.rules import XNNPACK
from qn_deploy.program.program import Batch

from . import read
from .pte import to_stock
from .runner import RUNNER
from .stock import rebuild
from .write import write


class ExecutorchExporter:
    """The exporter for ExecuTorch; see `qn_deploy.exporting.exporter.Exporter`."""

    filename = "model.pte"
    runtime = "ExecuTorch XNNPACK"
    rules = XNNPACK
    runner = RUNNER
    optimizes = False
    write = staticmethod(write)

    # A .pte is one file and its graph was rewritten at export: `parts` are never there, and `optimized` changes nothing.
    def run(
        self, data: bytes, batches: tuple[Batch, ...], optimized: bool = True, parts: Mapping[str, bytes] = NO_PARTS
    ) -> tuple[Batch, ...]:
        """Runs a program on ExecuTorch."""
        return read.run(data, batches)

    def weight_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        """The sha256 of each constant."""
        return read.weight_hashes(data)

    def dense(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> bytes:
        """The stock program."""
        return to_stock(data)

    def rebuild(self, companions: Mapping[str, bytes]) -> bytes:
        """The stock program, from the one companion: the stock form."""
        (container,) = companions.values()
        return rebuild(container)


EXPORTER = ExecutorchExporter()
