"""`qn_deploy.save` and `qn_deploy.load`: a Program to a file and back."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qn_deploy.errors import InputError, QnDeployError, first_line
from qn_deploy.files import read_bytes, write_atomic
from qn_deploy.program.archive import program_from_members, program_to_bytes
from qn_deploy.program.container import MANIFEST
from qn_deploy.program.kinds import check_zip, other_zip
from qn_deploy.program.members import read_directory, read_members
from qn_deploy.program.program import Batch, Program
from qn_deploy.program.pt2 import is_pt2, program_from_pt2


def save(program: Program, path: str | Path) -> None:
    """Writes a program to model.pt: the graph, weights, tables, ranges and hashes, no pickle. The same program gives the same bytes.

    The golden inputs and outputs of the program are stored in the file: give `capture` examples that may be passed on. What it was
    calibrated and compressed with is not stored.

    Args:
        program: float or compressed.
        path: the file; a good file that is there already is replaced only by a whole new one.

    Raises:
        InputError: the program holds what the format can't hold, or the file can't be written.
    """
    write_atomic(path, program_to_bytes(program))


def load(path: str | Path, example_inputs: Batch | dict[str, Tensor] | None = None) -> Program:
    """Reads a model.pt, or a `.pt2` that torch.export.save wrote; nothing in the file is run before it is checked.

    Args:
        path: the file; which of the two it is is told from its contents.
        example_inputs: the golden inputs of a `.pt2`, a tensor for each input or a dict by its name. If None they are made up: a `.pt2`
            holds them as a pickle, which is never opened.

    Raises:
        InputError: the file is missing, damaged, too large, or no program; the message says what it is and the way out.
    """
    data = read_bytes(path)
    try:
        check_zip(data)
        names = [entry.filename for entry in read_directory(data)]
        if MANIFEST in names:
            if example_inputs is not None:
                raise InputError("is a model.pt, which holds golden inputs of its own; leave example_inputs out")
            return program_from_members(read_members(data))
        if is_pt2(names):
            return program_from_pt2(read_members(data), example_inputs)
        raise other_zip(names)
    except QnDeployError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # hashes hold and nothing foreign is in it: torch or this package has changed since, or it is forged
        message = f"{path}: torch {torch.__version__} can't rebuild the program ({first_line(error)}); save the model again"
        raise InputError(message) from error
