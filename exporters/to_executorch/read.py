"""Reading a written `.pte` back: its weights, and what the ExecuTorch runtime makes of it."""

from __future__ import annotations

from hashlib import sha256

import torch

from qn_deploy.program.program import Batch
from qn_deploy.weights.compressed import INT8_MAX

from .pte import constants, named_data, table_of
from .runtime import load_program

SINGLE_VALUES = torch.arange(-INT8_MAX, INT8_MAX + 1, dtype=torch.int8).reshape(1, -1, 1)  # as which a blob holds an int8 weight


def run(data: bytes, batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
    """Runs a program on ExecuTorch, one result for each batch."""
    program = load_program(data)
    return tuple(program.run(batch) for batch in batches)


def weight_hashes(data: bytes) -> set[str]:
    """The sha256 of each constant: a table's int8 values, row-major, and every other constant as it is stored."""
    hashes = {sha256(constant).hexdigest() for constant in constants(data)}
    for constant in named_data(data).values():
        parts = [constant]
        if (table := table_of(constant)) is not None:
            parts = [part.contiguous().numpy().tobytes() for part in (table.int8(), table.scale)]
        hashes.update(sha256(part).hexdigest() for part in parts)
    return hashes


def table_hashes(data: bytes) -> set[str]:
    """The sha256 of the int8 values of each weight that the file holds as a table; int8 weights, in blobs of single values, are none."""
    tables = [table for constant in named_data(data).values() if (table := table_of(constant)) is not None]
    # In any order: where codes are entropy-coded, centroids are sorted by their use.
    compressed = [table for table in tables if not torch.equal(table.centroids.sort(1).values, SINGLE_VALUES)]
    return {sha256(table.int8().contiguous().numpy().tobytes()).hexdigest() for table in compressed}
