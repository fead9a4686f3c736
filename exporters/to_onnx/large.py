"""External data: a file near protobuf's limit of 2 GB keeps the values of its constants in a second one.

onnxruntime finds that file by its name alone, and runs graph A with the data of B without a word: the name holds the data's hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import onnx
from onnx import TensorProto

from qn_deploy.errors import InputError

from .modules import load

LIMIT = 1_900_000_000  # bytes of values in one file; protobuf takes 2^31 with everything
_SMALL = 1024  # bytes; smaller constants stay in the graph, where onnxruntime looks for shapes
_ALIGNED = 4096  # bytes, so that onnxruntime can map the file


def externalize(model: onnx.ModelProto) -> dict[str, bytes]:
    """Moves the values of all larger constants out of a model that would not fit one file.

    Returns:
        The data file by its name; nothing if the model fits.
    """
    entries = [entry for entry in model.graph.initializer if len(entry.raw_data) > _SMALL]
    if sum(len(entry.raw_data) for entry in entries) <= LIMIT:
        return {}
    data = bytearray()
    places = []
    for entry in entries:
        data += bytes(-len(data) % _ALIGNED)
        places.append(len(data))
        data += entry.raw_data
    name = f"model.{hashlib.sha256(data).hexdigest()[:16]}.data"
    for entry, offset in zip(entries, places, strict=True):
        fields = {"location": name, "offset": str(offset), "length": str(len(entry.raw_data))}
        entry.ClearField("raw_data")
        entry.data_location = TensorProto.EXTERNAL
        for key, value in fields.items():
            entry.external_data.add(key=key, value=value)
    return {name: bytes(data)}


def load_whole(data: bytes, parts: Mapping[str, bytes]) -> onnx.ModelProto:
    """A written model with all its values in memory, under their whole names.

    Raises:
        InputError: a data file is missing, or too short.
    """
    model = load(data)
    for entry in model.graph.initializer:
        if entry.data_location == TensorProto.EXTERNAL:
            place = {field.key: field.value for field in entry.external_data}
            first, length = int(place["offset"]), int(place["length"])
            part = parts.get(place["location"], b"")
            if len(part) < first + length:
                raise InputError(f"{entry.name} lies in {place['location']}, which is missing or too short; export the model again")
            entry.ClearField("external_data")
            entry.ClearField("data_location")
            entry.raw_data = part[first : first + length]
    return model
