"""Writes `.pte` files for ExecuTorch with XNNPACK, tables in place of dense constants. The blob's format: README.md beside this file.

What imports executorch is imported when it is needed, see `qn_deploy.exporting.exporter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from qn_deploy.errors import ExportError
from qn_deploy.exporting.exporter import NO_PARTS, Written

from .options import ExecutorchOptions

if TYPE_CHECKING:
    from qn_deploy.exporting.runner import Runner
    from qn_deploy.lowering.lower import Activations, Form, Lowered
    from qn_deploy.lowering.rules import Rules
    from qn_deploy.program.account import Part
    from qn_deploy.program.program import Batch, Program
    from qn_deploy.targets import Target


class ExecutorchExporter:
    """The exporter for ExecuTorch; see `qn_deploy.exporting.exporter.Exporter`."""

    filename = "model.pte"
    runtime = "ExecuTorch XNNPACK"
    optimizes = False
    options = ExecutorchOptions
    needs = ("executorch",)
    install = "pip install 'qn-deploy[executorch]'"

    @property
    def rules(self) -> Rules:
        """As XNNPACK rounds."""
        from qn_deploy.lowering.rules import XNNPACK

        return XNNPACK

    @property
    def runner(self) -> Runner:
        """The program for devices."""
        from .runner import RUNNER

        return RUNNER

    def forms(self, activations: Activations, options: ExecutorchOptions) -> tuple[Form, ...]:
        """By row, as XNNPACK takes dynamic ranges; and baked, as it takes no int8 weight beside float activations.

        Raises:
            ExportError: the graph form is asked for with int8 activations.
        """
        from qn_deploy.lowering.lower import Activations, Form

        if options.form == "graph" and activations is not Activations.NONE:
            raise ExportError(
                f"the graph form looks weights up at run time, and XNNPACK multiplies these in float only; export with --activations none "
                f"(found {activations.value}), or take the delegate form"
            )
        return (Form(activations, per_row=activations is Activations.DYNAMIC, baked=True),)

    def write(self, program: Program, lowered: tuple[Lowered, ...], options: ExecutorchOptions, target: Target) -> Written:
        """Writes a program with the XNNPACK delegate."""
        from .write import write

        return write(program, lowered[0], options)

    # A .pte is one file and its graph was rewritten at export: `parts` are never there, and `optimized` changes nothing.
    def run(
        self, data: bytes, batches: tuple[Batch, ...], optimized: bool = True, parts: Mapping[str, bytes] = NO_PARTS
    ) -> tuple[Batch, ...]:
        """Runs a program on ExecuTorch."""
        from .read import run

        return run(data, batches)

    def weight_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        """The sha256 of each constant."""
        from .read import weight_hashes

        return weight_hashes(data)

    def table_hashes(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> set[str]:
        """The sha256 of each weight that is a table."""
        from .read import table_hashes

        return table_hashes(data)

    def dense(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> bytes:
        """The stock program."""
        from .pte import to_stock

        return to_stock(data)

    def rebuild(self, companions: Mapping[str, bytes]) -> bytes:
        """The stock program, from the one companion: the stock form."""
        from .stock import rebuild

        (container,) = companions.values()
        return rebuild(container)

    def is_container(self, data: bytes) -> bool:
        """True for a stock form."""
        from .stock import MAGIC

        return data.startswith(MAGIC)

    def opened(self, data: bytes, parts: Mapping[str, bytes] = NO_PARTS) -> Callable[[Batch], Batch]:
        """A loaded program, on as many threads as ExecuTorch takes."""
        from .runtime import load_program

        return load_program(data).run

    def own_int8(self, program: Program, plain: bytes, inputs: Batch, is_static: bool) -> bytes:
        """What ExecuTorch's own tools make of a float program."""
        from .own import own_int8

        return own_int8(program, inputs, is_static)

    def account(self, data: bytes) -> tuple[Part, ...]:
        """Every byte of a file, by weight and kind."""
        from .account import account

        return account(data)


EXPORTER = ExecutorchExporter()
