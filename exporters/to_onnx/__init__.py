"""Writes `.onnx` files that stock onnxruntime runs: standard operators, weights as codes and centroids, int8 activations.

What imports onnx and onnxruntime is imported when it is needed, see `qn_deploy.exporting.exporter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from qn_deploy.exporting.exporter import NO_PARTS, Written

from .options import OnnxOptions

if TYPE_CHECKING:
    from qn_deploy.exporting.runner import Runner
    from qn_deploy.lowering.lower import Activations, Form, Lowered
    from qn_deploy.lowering.rules import Rules
    from qn_deploy.program.account import Part
    from qn_deploy.program.program import Batch, Program
    from qn_deploy.targets import Target


class OnnxExporter:
    """The exporter for onnxruntime; see `qn_deploy.exporting.exporter.Exporter`."""

    filename = "model.onnx"
    runtime = "onnxruntime"
    optimizes = True
    options = OnnxOptions
    needs = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
    install = "pip install 'qn-deploy[onnx]'"

    @property
    def rules(self) -> Rules:
        """As onnxruntime rounds."""
        from qn_deploy.lowering.rules import ONNXRUNTIME

        return ONNXRUNTIME

    @property
    def runner(self) -> Runner:
        """The program for devices."""
        from .runner import RUNNER

        return RUNNER

    def forms(self, activations: Activations, options: OnnxOptions) -> tuple[Form, ...]:
        """Dynamic quantization has its own operators in ONNX; they replace the linears of the graph with float activations."""
        from qn_deploy.lowering.lower import Activations, Form

        asked = (activations, Activations.NONE) if activations is Activations.DYNAMIC else (activations,)
        return tuple(Form(scheme) for scheme in asked)

    def write(self, program: Program, lowered: tuple[Lowered, ...], options: OnnxOptions, target: Target) -> Written:
        """Writes a program with standard operators only."""
        from .write import write

        return write(program, lowered[0], lowered[-1], options, target)

    def run(
        self, data: bytes, batches: tuple[Batch, ...], optimized: bool = True, parts: Mapping[str, bytes] = NO_PARTS
    ) -> tuple[Batch, ...]:
        """Runs a model on onnxruntime."""
        from .read import run

        return run(data, batches, optimized, parts)

    def weight_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        """The sha256 of each constant."""
        from .read import weight_hashes

        return weight_hashes(data, parts)

    def table_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        """The sha256 of each weight that is a table."""
        from .read import table_hashes

        return table_hashes(data, parts)

    def dense(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> bytes:
        """The model with plain int8 weights."""
        from .read import dense

        return dense(data, parts)

    def rebuild(self, companions: Mapping[str, bytes]) -> bytes:
        """The same from shell and sidecar."""
        from .shell import join

        return join(companions)

    def is_container(self, data: bytes) -> bool:
        """Never: a shell needs its sidecar."""
        return False

    def opened(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> Callable[[Batch], Batch]:
        """A loaded model that runs as an app runs it, on one thread."""
        from .read import opened

        return opened(data, parts, exact=False)

    def own_int8(self, program: Program, plain: bytes, inputs: Batch, is_static: bool) -> bytes:
        """What onnxruntime's own tools make of a float program."""
        from .own import own_int8

        return own_int8(plain, {name: tensor.numpy() for name, tensor in zip(program.inputs, inputs, strict=True)}, is_static)

    def account(self, data: bytes) -> tuple[Part, ...]:
        """Every byte of a file, by weight and kind."""
        from .account import account

        return account(data)


EXPORTER = OnnxExporter()
