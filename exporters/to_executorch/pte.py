"""Tables in and out of a finished .pte file.

XNNPACK's ahead-of-time side stores each constant as named data under the SHA-256 of its bytes. `to_tables` replaces such bytes by table
blobs and renames the delegate to QnXnnpackBackend; `to_stock` is the exact inverse. Working on the finished file keeps lowering free
of our code: one lowering gives both files, and which backend class, partitioner options or control flow made them does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qn_deploy.errors import ExportError, InputError
from qn_deploy.quiet import quiet

from .table_blob import is_blob, unpack

STOCK_BACKEND = "XnnpackBackend"
TABLE_BACKEND = "QnXnnpackBackend"


def named_data(pte: bytes) -> dict[str, bytes]:
    """The constants that delegates keep in a .pte, by key.

    Raises:
        InputError: the bytes are no .pte.
    """
    return _entries(_parse(pte))


def constants(pte: bytes) -> list[bytes]:
    """The constants that the program itself holds, for operators outside of delegates.

    Raises:
        InputError: the bytes are no .pte.
    """
    return [bytes(buffer.storage) for buffer in _parse(pte).program.constant_buffer]


def backends(pte: bytes) -> set[str]:
    """Names of the backends that a .pte runs parts of itself on.

    Raises:
        InputError: the bytes are no .pte.
    """
    return {delegate.id for plan in _parse(pte).program.execution_plan for delegate in plan.delegates}


def to_tables(pte: bytes, tables: Mapping[str, bytes]) -> bytes:
    """The same program with each constant that `tables` holds stored as its table; `pte` itself if it holds none of them.

    Args:
        pte: a program lowered by the stock XnnpackPartitioner.
        tables: blobs by the key of the constant that they stand for, as `named_blobs` gives them.

    Raises:
        InputError: the bytes are no .pte.
        ExportError: `to_stock` would not give back the same bytes.
    """
    file = _parse(pte)
    constants = _entries(file)
    if not constants.keys() & tables.keys():
        return pte
    if any(is_blob(data) for data in constants.values()):
        raise ExportError("a constant of the program starts like a table blob; was it given tables before?")
    result = _rewrite(file, STOCK_BACKEND, TABLE_BACKEND, lambda key, data: tables.get(key, data))
    if to_stock(result) != pte:
        raise ExportError(
            "expanding the tables does not give the stock program back: a table does not match its key, or the program was written with "
            "a segment layout other than ExecutorchBackendConfig's default"
        )
    return result


def to_stock(pte: bytes) -> bytes:
    """The same program with every table expanded: it runs on the stock runtime and computes bit for bit the same.

    Raises:
        InputError: the bytes are no .pte, or a table blob in it is damaged.
    """
    return _rewrite(_parse(pte), TABLE_BACKEND, STOCK_BACKEND, lambda key, data: unpack(data) if is_blob(data) else data)


def _parse(pte: bytes) -> Any:
    with quiet():
        from executorch.exir._serialize._program import deserialize_pte_binary
    try:
        return deserialize_pte_binary(pte)
    except Exception as error:  # the flatbuffer reader raises whatever the damage leads it to
        raise InputError(f"this is no ExecuTorch program (.pte): {type(error).__name__}: {error}") from None


def _entries(file: Any) -> dict[str, bytes]:
    if file.named_data is None:
        return {}
    return {key: bytes(file.named_data.buffers[entry.buffer_index]) for key, entry in file.named_data.pte_data.items()}


def _rewrite(file: Any, backend: str, renamed: str, replace: Callable[[str, bytes], bytes]) -> bytes:
    from executorch.exir._serialize._program import serialize_pte_binary

    for key, entry in file.named_data.pte_data.items() if file.named_data else ():
        file.named_data.buffers[entry.buffer_index] = replace(key, file.named_data.buffers[entry.buffer_index])
    for plan in file.program.execution_plan:
        for delegate in plan.delegates:
            if delegate.id == backend:
                delegate.id = renamed
    return bytes(serialize_pte_binary(file, extract_delegate_segments=True))
