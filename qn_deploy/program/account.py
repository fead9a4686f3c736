"""Every byte of a model.pt, by the tensor that it belongs to and what it is."""

from __future__ import annotations

import json
from dataclasses import dataclass

from qn_deploy.program.container import MANIFEST
from qn_deploy.program.members import Members

_SUFFIXES = {"codes": "codes", "residual_codes": "codes", "centroids": "centroids", "residual_centroids": "centroids", "scale": "scales"}
_MEMBERS = {"graph.json": "graph", MANIFEST: "manifest"}
LENGTH = 8  # bytes before the header of a safetensors file, which tell its length


@dataclass(frozen=True)
class Part:
    """Some bytes of a file.

    Attributes:
        name: of the weight or member; empty for what belongs to no one.
        kind: codes, centroids, scales, int8, int4, float, integers, graph, examples, ...
        bytes: how many.
    """

    name: str
    kind: str
    bytes: int


def whole(parts: list[Part], size: int, kind: str) -> tuple[Part, ...]:
    """The parts of a file of so many bytes, what they leave being of one kind."""
    return (*parts, Part("", kind, size - sum(part.bytes for part in parts)))


def account_of_model(members: Members, size: int) -> tuple[Part, ...]:
    """The parts of a model.pt; their bytes sum up to its size.

    Args:
        members: of the zip, checked.
        size: of the file.
    """
    parts = []
    weights = json.loads(bytes(members[MANIFEST])).get("weights", {})
    for member, content in members.items():
        if member in _MEMBERS:
            parts.append(Part(member, _MEMBERS[member], len(content)))
            continue
        length = int.from_bytes(content[:LENGTH], "little")
        parts.append(Part(member, "index", LENGTH + length))
        for name, entry in json.loads(bytes(content[LENGTH : LENGTH + length])).items():
            if name == "__metadata__":
                continue
            first, last = entry["data_offsets"]
            layer, _, suffix = name.rpartition(".")
            if member == "golden.safetensors":
                parts.append(Part("examples", "examples", last - first))
            elif member == "tables.safetensors":
                parts.append(Part(layer, _SUFFIXES.get(suffix) or weights.get(layer, {}).get("kind", "integers"), last - first))
            else:
                parts.append(Part(name, plain(entry["dtype"], len(entry["shape"])), last - first))
    return whole(parts, size, "container")


def plain(dtype: str, dimensions: int) -> str:
    """The kind of a tensor that is not compressed."""
    if not dtype.upper().startswith(("F", "B")) or dtype.upper() == "BOOL":
        return "integers"
    return "float" if dimensions > 1 else "bias and norm"
