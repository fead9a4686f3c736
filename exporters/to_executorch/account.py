"""Every byte of a `.pte`, and of a container that rebuilds one, by the constant that it belongs to and what it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from qn_deploy.errors import InputError
from qn_deploy.program.account import Part, whole
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.table_blob import is_coded, read, shares

from .pte import constants, named_data, table_of
from .stock import HEADER, MAGIC, Kind, pieces


def account(data: bytes) -> tuple[Part, ...]:
    """The parts of a file; their bytes sum up to its size.

    Raises:
        InputError: the bytes are neither a `.pte` nor a container.
    """
    if data.startswith(MAGIC):
        return _of_container(data)
    parts = []
    for key, constant in named_data(data).items():
        name = key.rpartition("_")[0] or key  # without the hash
        table = table_of(constant)
        parts += [Part(name, "int8, scales and biases", len(constant))] if table is None else _of_table(name, table, constant)
    parts += [Part("", "constants of other operators", len(constant)) for constant in constants(data)]
    if sum(part.bytes for part in parts) > len(data):  # some constant is read by several tensors
        raise InputError("the constants of this program are larger than its file; it is damaged")
    return whole(parts, len(data), "graph")


def _of_container(data: bytes) -> tuple[Part, ...]:
    parts = []
    for number, (kind, stored, _) in enumerate(pieces(data, HEADER.unpack_from(data)[2])):
        what = {Kind.BYTES: "program as it is", Kind.ZLIB: "program, deflated"}.get(kind)
        parts += [Part("", what, len(stored))] if what else _of_table(f"piece {number}", read(stored), stored)
    return whole(parts, len(data), "container")


def _of_table(name: str, weight: PQWeight, stored: bytes) -> list[Part]:
    found: Counter[str] = Counter()
    if is_coded(stored):
        found = shares(stored)
    else:
        for table in weight.tables:
            found["centroids"] += table.centroids.numel()
            found["codes"] += replace(table, residual=None).nbytes - table.centroids.numel() - table.scale.nbytes
    parts = [Part(name, kind, found[kind]) for kind in ("codes", "centroids")]
    return [*parts, Part(name, "table header", len(stored) - sum(part.bytes for part in parts))]
