"""Tables in and out of a finished .pte file.

XNNPACK's ahead-of-time side stores each constant as named data under the SHA-256 of its bytes. `to_tables` replaces such bytes by table
blobs, shortens the keys, compresses the graphs and renames the delegate to QnXnnpackBackend; `to_stock` is the exact inverse. Working on
the finished file keeps lowering free of our code: one lowering gives both files, and which backend class, partitioner options or control
flow made them does not matter.

A delegate of one linear layer may keep its table in memory: it is renamed to QnTableLinear, its graph goes into a layer blob and its weight
into a tile blob. `to_stock` undoes that as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import sha256
from math import prod
from typing import Any

import torch

from qn_deploy.errors import ExportError, InputError
from qn_deploy.quiet import quiet
from qn_deploy.weights import table_blob
from qn_deploy.weights.compressed import PQWeight

from . import graph_blob, layer_blob, tile_blob
from .layer_blob import Layer

STOCK_BACKEND = "XnnpackBackend"
TABLE_BACKEND = "QnXnnpackBackend"
LAYER_BACKEND = "QnTableLinear"
OUR_BACKENDS = (TABLE_BACKEND, LAYER_BACKEND)
KEY_DIGITS = 8  # that a short key keeps of the 64 of a SHA-256
GRAPH_DIGITS = 16  # that a graph keeps of such a key: they do not deflate, and XNNPACK's cache of weights tells programs apart by them
STOCK_ALIGNMENT = 128  # of a segment, as ExecutorchBackendConfig has it
ALIGNMENT = 16  # of a segment in a file of our own: all that XNNPACK asks for


def named_data(pte: bytes) -> dict[str, bytes]:
    """The constants that delegates keep in a .pte, by the key that the file has for them.

    Raises:
        InputError: the bytes are no .pte.
    """
    return _entries(_parse(pte))


def constants(pte: bytes) -> list[bytes]:
    """The constants that the program itself holds, for operators outside of delegates, each once for each tensor that reads it.

    Raises:
        InputError: the bytes are no .pte.
    """
    program = _parse(pte).program
    values = [value.val for plan in program.execution_plan for value in plan.values]
    tensors = [value for value in values if getattr(value, "data_buffer_idx", 0) and value.allocation_info is None]
    return [bytes(program.constant_buffer[tensor.data_buffer_idx].storage)[: _nbytes(tensor)] for tensor in tensors]


def backends(pte: bytes) -> set[str]:
    """Names of the backends that a .pte runs parts of itself on.

    Raises:
        InputError: the bytes are no .pte.
    """
    return {delegate.id for delegate in _delegates(_parse(pte))}


def to_tables(pte: bytes, tables: Mapping[str, bytes], layers: tuple[Layer, ...] = ()) -> bytes:
    """The same program with each constant that `tables` holds stored as its table; `pte` itself if it holds none of them.

    Args:
        pte: a program lowered by the stock XnnpackPartitioner.
        tables: blobs by the key of the constant that they stand for, as `named_blobs` gives them; tile blobs for those of `layers`.
        layers: delegates of one linear layer each that keep their tables in memory, see `kept_in`.

    Raises:
        InputError: the bytes are no .pte.
        ExportError: `to_stock` would not give back the same bytes.
    """
    file = _parse(pte)
    constants = _entries(file)
    if any(_is_table(data) for data in constants.values()):
        raise ExportError("a constant of the program starts like a table blob; was it given tables before?")
    if not constants.keys() & tables.keys():
        return pte
    # Another backend would not know the short keys, and might want its constants aligned.
    ours_alone = {delegate.id for delegate in _delegates(file)} == {STOCK_BACKEND}
    keys = short_keys(constants) if ours_alone else {}
    _replace_constants(file, {key: tables[key] for key in constants.keys() & tables.keys()}, keys)
    blanks = {full: _blanked(full) for full, short in keys.items() if full != short}

    def packed(graph: bytes) -> bytes:
        return graph_blob.deflate(_with_keys(graph, blanks))

    for layer in layers:
        named = layer.renamed(keys)
        _replace_graphs(file, STOCK_BACKEND, LAYER_BACKEND, partial(_pack_layer, named, packed), holding=layer.weight)
    _replace_graphs(file, STOCK_BACKEND, TABLE_BACKEND, packed)
    result = _serialize(file, ALIGNMENT if ours_alone else STOCK_ALIGNMENT)
    del file, constants  # as large as `pte`, and expanding makes as much again
    if not _expands_to(result, pte):
        raise ExportError(
            "expanding the tables does not give the stock program back: a table does not match its key, or the program was written with "
            "a segment layout other than ExecutorchBackendConfig's default"
        )
    return result


def to_stock(pte: bytes) -> bytes:
    """The same program with every table expanded: it runs on the stock runtime and computes bit for bit the same.

    `pte` itself if no part of it runs on our backends.

    Raises:
        InputError: the bytes are no .pte, or a blob in it is damaged.
    """
    file = _parse(pte)
    if not {delegate.id for delegate in _delegates(file)}.intersection(OUR_BACKENDS):
        return pte  # written anew, a program without named data would differ in its padding
    constants = {key: _unpack(data) for key, data in _entries(file).items()}
    keys = {key: _full_key(key, data) for key, data in constants.items()}
    _replace_constants(file, constants, keys)
    full = {_blanked(full): full for key, full in keys.items() if full != key}

    def unpacked(graph: bytes) -> bytes:
        return _with_keys(graph_blob.inflate(graph), full)

    _replace_graphs(file, TABLE_BACKEND, STOCK_BACKEND, unpacked)
    _replace_graphs(file, LAYER_BACKEND, STOCK_BACKEND, lambda blob: unpacked(layer_blob.graph_of(blob)))
    return _serialize(file, STOCK_ALIGNMENT)


def kept_in(pte: bytes, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Those of some layers that have a delegate of their own with the constants that the layer names.

    Raises:
        InputError: the bytes are no .pte.
    """
    if not layers:
        return ()
    file = _parse(pte)
    held, graphs = set(_entries(file)), [bytes(graph.data) for graph in file.program.backend_delegate_data]
    return tuple(
        layer
        for layer in layers
        if held.issuperset(layer.keys)
        and [all(key.encode() in graph for key in layer.keys) for graph in graphs if layer.weight.encode() in graph] == [True]
    )


def table_of(constant: bytes) -> PQWeight | None:
    """The table that a constant is stored as, or None.

    Raises:
        InputError: it is a damaged one.
    """
    if tile_blob.is_blob(constant):
        return tile_blob.read(constant)
    return table_blob.read(constant) if table_blob.is_blob(constant) else None


def _is_table(constant: bytes) -> bool:
    return table_blob.is_blob(constant) or tile_blob.is_blob(constant)


def _unpack(constant: bytes) -> bytes:
    if tile_blob.is_blob(constant):
        return tile_blob.unpack(constant)
    return table_blob.unpack(constant) if table_blob.is_blob(constant) else constant


def _pack_layer(layer: Layer, packed: Callable[[bytes], bytes], graph: bytes) -> bytes:
    return layer_blob.pack(layer, packed(graph))


def short_keys(constants: Mapping[str, bytes]) -> dict[str, str]:
    """The short key of each key that ends in the SHA-256 of its constant. Two keys that would become one are left out."""
    short = {
        key: key[: KEY_DIGITS - 64] if re.search(f"(?<![0-9a-f]){sha256(data).hexdigest()}$", key) else key
        for key, data in constants.items()
    }
    taken = Counter(short.values())
    return {key: name for key, name in short.items() if taken[name] == 1}


def _full_key(key: str, constant: bytes) -> str:
    if not re.search(rf"(?<![0-9a-f])[0-9a-f]{{{KEY_DIGITS}}}$", key):
        return key
    digest = sha256(constant).hexdigest()
    if not key.endswith(digest[:KEY_DIGITS]):
        raise InputError(f"the constant {key} has the SHA-256 {digest}, which its key does not match; the file is damaged")
    return key + digest[KEY_DIGITS:]


def _blanked(key: str) -> str:
    """A full key as a deflated graph has it, of the same length: the backend looks it up by its first KEY_DIGITS digits."""
    zeros = 64 - GRAPH_DIGITS
    return key[:-zeros] + "0" * zeros


def _with_keys(graph: bytes, keys: Mapping[str, str]) -> bytes:
    """A graph with other names for its constants."""
    for old, new in keys.items():
        graph = graph.replace(old.encode(), new.encode())
    return graph


def _expands_to(tables: bytes, stock: bytes) -> bool:
    try:
        return to_stock(tables) == stock
    except InputError:
        return False


def _nbytes(tensor: Any) -> int:
    """Bytes of a tensor's elements; its storage in the file is padded."""
    from executorch.exir.tensor import scalar_type_enum

    dtypes = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64, torch.bool)
    sizes: list[int] = tensor.sizes
    return prod(sizes) * next(dtype.itemsize for dtype in dtypes if scalar_type_enum(dtype) == tensor.scalar_type)


def _parse(pte: bytes) -> Any:
    with quiet():
        from executorch.exir._serialize._program import deserialize_pte_binary
    try:
        return deserialize_pte_binary(pte)
    except Exception as error:  # the flatbuffer reader raises whatever the damage leads it to
        raise InputError("this is no ExecuTorch program (.pte), or a damaged one") from error


def _serialize(file: Any, alignment: int) -> bytes:
    from executorch.exir._serialize._program import serialize_pte_binary

    return bytes(serialize_pte_binary(file, extract_delegate_segments=True, segment_alignment=alignment))


def _entries(file: Any) -> dict[str, bytes]:
    if file.named_data is None:
        return {}
    return {key: bytes(file.named_data.buffers[entry.buffer_index]) for key, entry in file.named_data.pte_data.items()}


def _delegates(file: Any) -> list[Any]:
    return [delegate for plan in file.program.execution_plan for delegate in plan.delegates]


def _replace_constants(file: Any, constants: Mapping[str, bytes], keys: Mapping[str, str]) -> None:
    if file.named_data is None:
        return
    entries = file.named_data.pte_data
    for key, data in constants.items():
        file.named_data.buffers[entries[key].buffer_index] = data
    file.named_data.pte_data = {keys.get(key, key): entry for key, entry in entries.items()}


def _replace_graphs(file: Any, backend: str, renamed: str, changed: Callable[[bytes], bytes], holding: str = "") -> None:
    """Renames the delegates of a backend whose graphs have these words in them, and changes their graphs."""
    for delegate in _delegates(file):
        graph = file.program.backend_delegate_data[delegate.processed.index]
        if delegate.id == backend and holding.encode() in bytes(graph.data):
            delegate.id = renamed
            graph.data = changed(bytes(graph.data))
