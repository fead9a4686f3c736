"""Which tables stay tables in memory, and what that takes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod

from qn_deploy.exporting.exporter import WeightMemory
from qn_deploy.lowering.insert import INT8_SUFFIX
from qn_deploy.weights.compressed import CompressedWeight, PQWeight

from . import Memory
from .packing import SMALL, TILE_ROWS, packed

_MOST_INPUTS, _MOST_CENTROIDS, _LARGEST_BLOCK = 1 << 16, 256, 64  # that the kernels take


def to_keep(weights: Mapping[str, CompressedWeight], memory: Memory) -> dict[str, PQWeight]:
    """The tables that are to stay tables in memory, by the name of the parameter.

    Args:
        weights: by the names of their int8 values, as `Lowered.weights` has them.
        memory: what was asked for.
    """
    rules: dict[Memory, Callable[[PQWeight], bool]] = {"expanded": lambda table: False, "compressed": fits, "auto": pays}
    return {name: table for name, table in _int8_tables(weights).items() if rules[memory](table)}


def fits(table: PQWeight) -> bool:
    """True if the kernels take such a table, and it takes less memory than its int8 values."""
    _, size, d = table.centroids.shape
    if table.residual is not None or size > _MOST_CENTROIDS or d > _LARGEST_BLOCK or table.codes.shape[1] * d > _MOST_INPUTS:
        return False
    return bytes_in_memory(table) < prod(table.shape)


def pays(table: PQWeight) -> bool:
    """True if a product with such a table takes less memory and, of one row, less time than with its int8 values.

    As benchmarks/kernels.py finds: at most 16 centroids are looked up by byte shuffles; larger ones are decoded at each run, two to three
    times slower than int8 for one row of activations. A lookup of one weight does not make up for its own cost, and fewer rows than a tile
    has waste its lanes.
    """
    return fits(table) and table.centroids.shape[1] <= SMALL and table.block_size >= 2 and len(table.codes) >= TILE_ROWS


def bytes_in_memory(table: PQWeight) -> int:
    """What a kernel keeps of a table: codes, centroids twice, the second time in the order of the lookups, and a sum a row.

    Scales and biases of the rows take as much as with int8 values, and are not counted in either.
    """
    books, size, d = table.centroids.shape
    lookups = books * d * (SMALL * 2 if size <= SMALL else _MOST_CENTROIDS)
    return packed(table).nbytes + table.centroids.numel() + lookups + 4 * len(table.codes)


def in_memory(weights: Mapping[str, CompressedWeight], kept: Collection[str], memory: Memory) -> dict[str, WeightMemory]:
    """What each table that becomes int8 takes in memory, by its parameter's name; nothing where all are to be expanded.

    Args:
        weights: as for `to_keep`.
        kept: names of the parameters whose tables stay.
        memory: what was asked for.
    """
    tables = {} if memory == "expanded" else _int8_tables(weights)
    return {name: WeightMemory(prod(table.shape), bytes_in_memory(table) if name in kept else 0) for name, table in tables.items()}


def _int8_tables(weights: Mapping[str, CompressedWeight]) -> dict[str, PQWeight]:
    """The tables that become int8, by the name of the parameter."""
    return {
        name.removesuffix(INT8_SUFFIX): weight
        for name, weight in weights.items()
        if name.endswith(INT8_SUFFIX) and isinstance(weight, PQWeight)
    }


def remarks(found: Mapping[str, WeightMemory], memory: Memory, where: str = "") -> tuple[str, ...]:
    """A line on the tables that stay, if some were to.

    Args:
        found: as `in_memory` gives it.
        memory: what was asked for.
        where: on what it depends: " where ... is registered".
    """
    kept = [entry for entry in found.values() if entry.compressed]
    if memory == "expanded":
        return ()
    if not kept:
        return ("no layer keeps its table in memory: none has the form that the kernels take",)
    small, large = sum(entry.compressed for entry in kept), sum(entry.expanded for entry in kept)
    layers = f"{len(kept)} layers keep their tables" if len(kept) > 1 else "1 layer keeps its table"
    return (f"{layers} in memory{where}: {small:,} bytes instead of {large:,}",)
