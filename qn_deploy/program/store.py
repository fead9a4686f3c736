"""`qn_deploy.save` and `qn_deploy.load`: from the training script to model.pt and back."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from qn_deploy.compression import Compressed
from qn_deploy.program.archive import read_program, write_program
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Batch, Program


def save(
    model: nn.Module | Compressed,
    path: str | Path,
    *,
    example_inputs: Batch,
    dynamic_shapes: Any = None,
    calibration: Iterable[Batch] = (),
    reference: nn.Module | None = None,
) -> Program:
    """Writes a compressed model to model.pt: the graph, the tables, golden vectors and hashes, no pickle.

    Args:
        model: what `compress` or `ipq` returned, or a module that carries compressed weights.
        path: the file; a good file that is there already is replaced only by a whole new one.
        example_inputs: one tensor for each positional input. They become the golden inputs that every runtime is checked with, so
            give a batch of real ones.
        dynamic_shapes: as `torch.export.export` takes it, e.g. ({0: torch.export.Dim("batch", max=64)},). ExecuTorch plans its memory
            at export, so each dimension needs a `max`.
        calibration: batches of inputs for the ranges of static int8 activations; a few hundred unlabelled samples do.
        reference: the float model before compression; needed only with a bare module (a `Compressed` knows its own).

    Returns:
        The program that was written.

    Raises:
        InputError: a batch does not fit the example inputs or holds NaN; the file can't be written.
        ExportError: torch.export can't capture the model.
    """
    if isinstance(model, Compressed):
        reference = model.reference if reference is None else reference
        program = capture(model.model, example_inputs, dynamic_shapes, calibration, reference, model.recipe, model.left)
    else:
        program = capture(model, example_inputs, dynamic_shapes, calibration, reference)
    write_program(program, path)
    return program


def load(path: str | Path) -> Program:
    """Reads a model.pt, checking every hash; nothing in the file is executed.

    Raises:
        InputError: the file is missing, damaged, or no model.pt; the message says what it is and the way out.
    """
    return read_program(path)
