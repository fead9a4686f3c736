"""Layer blobs: a layer that keeps its table. README.md of this folder specifies the bytes; native/layer_blob.h reads them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from hashlib import sha256

from qn_deploy.errors import InputError

MAGIC = b"\x89QNLAYER" + sha256(b"qn-deploy layer blob").digest()[:8]
VERSION = 1
HEADER = struct.Struct("<16s2IfifiiiIII")  # magic, version, kind, x scale and zero, y scale and zero, low, high, lengths of three keys


class Kind(IntEnum):
    """What a layer takes and gives."""

    STATIC = 0  # int8 [..., inputs] to int8 [..., outputs]
    DYNAMIC = 1  # floats [..., inputs] to floats, quantized row by row at run time
    CONVOLUTION = 2  # int8 [N, inputs, ...] to int8 [N, outputs, ...]: at each position a static layer


@dataclass(frozen=True)
class Layer:
    """What a layer does beside its weight.

    Attributes:
        name: of the weight in the graph; not stored.
        kind: what it takes and gives; int8 by x, y and bounds.
        weight: key of the constant.
        scale: key of the scales of its rows.
        bias: key of the bias, "" without one.
        x: scale and zero point of the input.
        y: scale and zero point of the output.
        bounds: the least and the most step of the output.
    """

    name: str
    kind: Kind
    weight: str
    scale: str
    bias: str
    x: tuple[float, int] = (1.0, 0)
    y: tuple[float, int] = (1.0, 0)
    bounds: tuple[int, int] = (-128, 127)

    @property
    def keys(self) -> tuple[str, ...]:
        """Those of all its constants."""
        return (self.weight, self.scale, self.bias) if self.bias else (self.weight, self.scale)

    def renamed(self, keys: Mapping[str, str]) -> Layer:
        """The same layer of constants under other keys, where there are others."""
        weight, scale, bias = (keys.get(key, key) for key in (self.weight, self.scale, self.bias))
        return replace(self, weight=weight, scale=scale, bias=bias)


def pack(layer: Layer, graph: bytes) -> bytes:
    """The blob of a layer.

    Args:
        layer: what our kernels read.
        graph: what XNNPACK would read, as it is or as a graph blob.
    """
    keys = [key.encode() for key in (layer.weight, layer.scale, layer.bias)]
    header = HEADER.pack(MAGIC, VERSION, layer.kind, *layer.x, *layer.y, *layer.bounds, *map(len, keys))
    return header + b"".join(keys) + graph


def is_blob(data: bytes) -> bool:
    """True if `data` is marked as a layer blob."""
    return data.startswith(MAGIC)


def graph_of(blob: bytes) -> bytes:
    """XNNPACK's graph of the layer, as `pack` was given it.

    Raises:
        InputError: this is no layer blob.
    """
    if len(blob) < HEADER.size or not is_blob(blob):
        raise InputError(f"no layer blob: {len(blob)} bytes that start with {blob[:16].hex(' ')}; expected {MAGIC.hex(' ')}")
    version, lengths = HEADER.unpack_from(blob)[1], HEADER.unpack_from(blob)[-3:]
    at = HEADER.size + sum(lengths)
    if version != VERSION or at >= len(blob):
        raise InputError(f"layer blob of version {version} and {len(blob)} bytes; expected version {VERSION} and a graph after byte {at}")
    return blob[at:]
