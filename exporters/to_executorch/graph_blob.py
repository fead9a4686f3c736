"""Graph blobs: how a delegate's graph lies compressed in a .pte file. README.md of this folder specifies the bytes.

`deflate` and `inflate` are the Python side; native/graph_blob.h inflates the same bytes on the device.
"""

from __future__ import annotations

import struct
import zlib
from hashlib import sha256

from qn_deploy.errors import InputError

MAGIC = b"\x89QNGRAPH" + sha256(b"qn-deploy graph blob").digest()[:8]
VERSION = 1
HEADER = struct.Struct("<16sII")  # magic, version, bytes of the graph
LIMIT = 1 << 30  # bytes of a graph


def is_blob(payload: bytes) -> bool:
    """True if a delegate's payload is marked as a graph blob."""
    return payload.startswith(MAGIC)


def deflate(graph: bytes) -> bytes:
    """The blob that inflates to `graph`; `graph` itself where that is not larger, or is larger than a reader takes."""
    blob = HEADER.pack(MAGIC, VERSION, len(graph)) + zlib.compress(graph, 9) if len(graph) <= LIMIT else graph
    return min(graph, blob, key=len)


def inflate(payload: bytes) -> bytes:
    """The graph that a payload stands for: a payload that is no blob stands for itself.

    Raises:
        InputError: the blob breaks a rule of the format; the message says which.
    """
    if not is_blob(payload):
        return payload
    if len(payload) < HEADER.size:
        raise InputError(f"graph blob of {len(payload)} bytes; expected a header of {HEADER.size} and a zlib stream")
    _, version, size = HEADER.unpack_from(payload)
    if version != VERSION or not 1 <= size <= LIMIT:
        raise InputError(f"graph blob of version {version} and {size} bytes; expected version {VERSION} and 1 to {LIMIT} bytes")
    stream = zlib.decompressobj()
    try:
        graph = stream.decompress(payload[HEADER.size :], size)
    except zlib.error as error:
        raise InputError(f"graph blob: {error}") from None
    if len(graph) != size or not stream.eof:
        raise InputError(f"graph blob: its stream does not end after the {size} bytes that its header promises")
    return graph
