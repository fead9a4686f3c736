"""The shell form: a graph of a few KB, and a sidecar with its constants, tables among them, which are decoded one by one at load.

The one-file form is decoded by onnxruntime: codes as int32, the gathered blocks and the weight live side by side for all layers. Here
the application decodes each weight into a file that is there while the program loads, and onnxruntime maps it, one weight at a time.

    model.shell.onnx         the dense int8 model, the values of its large constants left out (external data)
    model.shell.safetensors  those constants: a table blob for each compressed weight, the others as they are

README.md of this folder specifies the sidecar, for loaders in other languages.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper
from safetensors import SafetensorError
from safetensors.numpy import load, save

from qn_deploy.errors import InputError, first_line
from qn_deploy.exporting.exporter import NO_PARTS
from qn_deploy.lowering.insert import INT8_SUFFIX
from qn_deploy.weights.compressed import CompressedWeight, PQWeight
from qn_deploy.weights.table_blob import DType, Layout, pack, unpack

from .functions import inlined
from .modules import load as load_model
from .names import DECODED
from .read import expanded, transposes

SHELL, SIDECAR = "model.shell.onnx", "model.shell.safetensors"
_SHAPES = "shapes"  # of the weights that lie as blobs: key of the sidecar's metadata
_SMALL = 1024  # bytes; smaller constants stay in the shell
_DECODED, _ALIGNED = "decoded", 4096  # the file of the decoded constants, and where each may begin, so that it can be mapped


def split(data: bytes, weights: Mapping[str, CompressedWeight], parts: Mapping[str, bytes] = NO_PARTS) -> dict[str, bytes]:
    """Shell and sidecar of a written model.

    Args:
        data: the one-file form.
        weights: the compressed form of each int8 buffer, as `Lowered` has them.
        parts: its external data.
    """
    tables = {name.removesuffix(INT8_SUFFIX) + DECODED: weight for name, weight in weights.items() if isinstance(weight, PQWeight)}
    written, model = inlined(load_model(data)).graph, expanded(data, parts)
    tensors: dict[str, np.ndarray] = {}
    shapes: dict[str, list[int]] = {}
    for entry in model.graph.initializer:
        if entry.name in tables:
            layout = Layout.ISO if transposes(written, entry.name) else Layout.OIS
            tensors[entry.name] = np.frombuffer(pack(tables[entry.name], layout, DType.INT8), np.uint8)
            shapes[entry.name] = list(entry.dims)
        elif len(entry.raw_data) > _SMALL:
            tensors[entry.name] = numpy_helper.to_array(entry)
        if entry.name in tensors:
            entry.ClearField("raw_data")
            entry.data_location = TensorProto.EXTERNAL
            entry.external_data.add(key="location", value=SIDECAR)
    sidecar = save(tensors, {_SHAPES: json.dumps(shapes, sort_keys=True)})
    return {SHELL: model.SerializeToString(deterministic=True), SIDECAR: sidecar}


def join(companions: Mapping[str, bytes]) -> bytes:
    """The dense int8 model, byte for byte, from shell and sidecar.

    Raises:
        InputError: one is missing or damaged, or they are not of one model.
    """
    if missing := sorted({SHELL, SIDECAR} - companions.keys()):
        raise InputError(f"{', '.join(missing)} is missing: a shell and its sidecar belong together; export the model again with --shell")
    model = _model(companions[SHELL])
    tensors = dict(constants(companions[SIDECAR]))
    for entry in model.graph.initializer:
        if entry.data_location == TensorProto.EXTERNAL:
            if entry.name not in tensors or list(tensors[entry.name].shape) != list(entry.dims):
                raise InputError(f"{SIDECAR} does not hold {entry.name} of shape {list(entry.dims)}; it is not the sidecar of this shell")
            entry.CopyFrom(numpy_helper.from_array(tensors[entry.name], entry.name))
    result: bytes = model.SerializeToString(deterministic=True)
    return result


def constants(sidecar: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """The constants of a sidecar by name, decoded one at a time.

    Raises:
        InputError: the sidecar is damaged.
    """
    try:
        header = json.loads(sidecar[8 : 8 + int.from_bytes(sidecar[:8], "little")])
        shapes = json.loads(header["__metadata__"][_SHAPES])
        tensors = load(sidecar)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{SIDECAR} is damaged ({error}); export the model again with --shell") from None
    for name, array in tensors.items():
        yield name, array if name not in shapes else _decoded(name, array.tobytes(), shapes[name])


def _decoded(name: str, blob: bytes, shape: list[int]) -> np.ndarray:
    try:
        return np.frombuffer(unpack(blob), np.int8).reshape(shape)
    except (InputError, ValueError, TypeError) as error:
        raise InputError(f"{SIDECAR}: {name}: {error}; export the model again with --shell") from None


def load_shell(
    folder: Path, options: onnxruntime.SessionOptions | None = None, scratch: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session of the shell and the sidecar in a folder.

    Handed over in memory (`add_external_initializers`), all decoded weights would live until the session is ready, beside the copies that
    onnxruntime packs. From a file it maps one after the other.

    Check the files against the SHA-256 in manifest.json first if they come from elsewhere: neither has a checksum of its own.

    Args:
        folder: with model.shell.onnx and model.shell.safetensors.
        options: of the session.
        scratch: where the decoded weights lie while the session is made, as many bytes as the int8 model; a folder on a disk, as one in
            memory would save nothing. None takes the system's folder for temporary files.

    Raises:
        InputError: a file is missing or damaged, or the weights can't be written.
    """
    try:
        shell, sidecar = ((folder / name).read_bytes() for name in (SHELL, SIDECAR))
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            path = Path(name) / SHELL
            path.write_bytes(_unpacked(shell, sidecar, Path(name)))
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except OSError as error:
        place = error.filename or scratch or tempfile.gettempdir()
        raise InputError(f"{place}: {error.strerror}; a shell, its sidecar and room for the decoded weights are needed") from None


def _unpacked(shell: bytes, sidecar: bytes, folder: Path) -> bytes:
    """The shell, its external data being a file in `folder` that holds the decoded constants."""
    model = _model(shell)
    places: dict[str, tuple[int, int]] = {}
    with (folder / _DECODED).open("wb") as file:
        for name, array in constants(sidecar):
            file.write(bytes(-file.tell() % _ALIGNED))
            places[name] = file.tell(), array.nbytes
            file.write(array.data)
    for entry in model.graph.initializer:
        if entry.data_location == TensorProto.EXTERNAL:
            if entry.name not in places:
                raise InputError(f"{SIDECAR} does not hold {entry.name}; it is not the sidecar of this shell")
            offset, length = places[entry.name]
            del entry.external_data[:]
            for key, value in {"location": _DECODED, "offset": str(offset), "length": str(length)}.items():
                entry.external_data.add(key=key, value=value)
    result: bytes = model.SerializeToString()
    return result


def _model(shell: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(shell)
    except Exception as error:  # protobuf's own class, which is no public name
        raise InputError(f"{SHELL} is no ONNX model: {first_line(error)}") from None
