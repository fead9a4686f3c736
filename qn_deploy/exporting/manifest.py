"""manifest.json: what stands in a build folder, and what verification holds it to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qn_deploy.errors import InputError
from qn_deploy.exporting.config import ExportConfig

FORMAT, VERSION = "qn-deploy build", 3
MANIFEST, GOLDEN = "manifest.json", "golden.safetensors"


@dataclass(frozen=True)
class BesideEntry:
    """A file beside a program file: size and sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class FileEntry:
    """One program file.

    Attributes:
        exporter: name of the exporter that wrote it.
        runtime: the runtime's name.
        bytes: its size.
        sha256: of the file.
        notes: what its exporter remarked.
        companions: files with the same program in another form, by name.
        facts: what its user has to know ("opset": "18", session options that a processor needs).
        parts: files that belong to it and have to lie beside it, by name.
        activations: static, static-qnnpack, dynamic or none, as the file computes.
        steps: the quantization step of each output; null for a float one.
        inexact: operators of a static file without an exact integer rule; empty means that its runtime must match bit for bit.
        dense: weights that it holds without their table, on purpose.
        folded: weights that it does not hold, as what reads them was computed when it was written.
    """

    exporter: str
    runtime: str
    bytes: int
    sha256: str
    activations: str
    steps: tuple[float | None, ...]
    notes: tuple[str, ...] = ()
    companions: dict[str, BesideEntry] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    parts: dict[str, BesideEntry] = field(default_factory=dict)
    inexact: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()

    @property
    def is_static(self) -> bool:
        """True if the ranges of its activations were calibrated."""
        return self.activations.startswith("static")


@dataclass(frozen=True)
class TensorEntry:
    """An input or output: name, torch dtype and shape (null where it is dynamic)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class WeightEntry:
    """A compressed weight.

    Attributes:
        kind: table, int8 or int4.
        shape: the weight's own shape.
        bytes: what a file needs for it.
        sha256: of its int8 values, row-major.
        parts: sha256 of the codes and of the centroids of each table, as an embedding holds them, which is looked up and never expanded.
        residual: centroids of each codebook of the second table, 0 if there is none.
        scale: sha256 of its float32 scales; empty where it is one for the whole weight, which formats hold among other things.
    """

    kind: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str
    parts: tuple[str, ...] = ()
    block_size: int | None = None
    codebooks: int | None = None
    centroids: int | None = None
    residual: int = 0
    scale: str = ""

    @property
    def is_table(self) -> bool:
        """True if files hold it as codes and centroids: 4 bits are codes into the fifteen values that they stand for."""
        return self.kind != "int8"


@dataclass(frozen=True)
class Manifest:
    """All of manifest.json.

    Attributes:
        config: what the export was asked for.
        activations: static, static-qnnpack, dynamic or none: the scheme that exporters were asked for.
        files: program files by name.
        golden_sha256: hash of golden.safetensors, see `golden.py`.
        theoretical_bytes: codes, centroids, scales, biases and uncompressed constants (paper section 3.3, eq. M).
        float_bytes: the same model with every constant as stored before compression (float32).
        left: weights that kept another form than the recipe asked for, with the reason.
    """

    config: ExportConfig
    activations: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    files: dict[str, FileEntry]
    golden_sha256: str
    weights: dict[str, WeightEntry]
    theoretical_bytes: int
    float_bytes: int
    versions: dict[str, str]
    recipe: dict[str, Any] | None = None
    left: dict[str, str] = field(default_factory=dict)

    @property
    def file_names(self) -> set[str]:
        """The names of all files of the build but the manifest itself."""
        beside = {name for entry in self.files.values() for name in (*entry.companions, *entry.parts)}
        return {GOLDEN, *self.files, *beside}

    def to_json(self) -> str:
        """The text of manifest.json; keys sorted, so that the same build gives the same bytes."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, sort_keys=True) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a build folder.

    Raises:
        InputError: the folder holds no manifest, or one that this version can't read.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise InputError(f"{path} is no manifest of qn-deploy; export the model again with qn-deploy export")
        if (version := data.pop("version", None)) != VERSION:
            raise InputError(f"{path} has version {version}, this qn-deploy reads version {VERSION}; export the model again")
        data["config"] = ExportConfig(**{**data["config"], "only": tuple(data["config"]["only"])})
        data["files"] = {name: _file_entry(entry) for name, entry in data["files"].items()}
        for key in ("inputs", "outputs"):
            data[key] = tuple(TensorEntry(**{**entry, "shape": tuple(entry["shape"])}) for entry in data[key])
        data["weights"] = {
            name: WeightEntry(**{**entry, "shape": tuple(entry["shape"]), "parts": tuple(entry["parts"])})
            for name, entry in data["weights"].items()
        }
        return _checked(Manifest(**data))
    except FileNotFoundError:
        raise InputError(f"{folder} holds no {MANIFEST}; it is not the folder of an export. Write one: qn-deploy export model.pt") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read: {error}") from None
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); export the model again with qn-deploy export") from None


def read_listed(path: Path, sha256: str) -> bytes:
    """A file that a manifest lists.

    Raises:
        InputError: it can't be read, or is not the one that was exported.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); the manifest lists it. Export the model again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path} is not the file that was exported: its sha256 differs from the manifest's. Export the model again")
    return data


def _file_entry(entry: dict[str, Any]) -> FileEntry:
    lists = {key: tuple(_list(entry[key], key)) for key in ("notes", "steps", "inexact", "dense", "folded")}
    beside = {key: {name: BesideEntry(**file) for name, file in entry[key].items()} for key in ("companions", "parts")}
    return FileEntry(**{**entry, **lists, **beside})


def _list(value: Any, key: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{key} {value!r}")
    return value


def _checked(manifest: Manifest) -> Manifest:
    """A manifest whose values decide how strict the rungs are, and are what they should be."""
    for scheme in (manifest.activations, *(entry.activations for entry in manifest.files.values())):
        if scheme not in ("static", "static-qnnpack", "dynamic", "none"):
            raise ValueError(f"activations {scheme!r}")
    if strange := [name for name in manifest.file_names if Path(name).name != name or name in ("", "..")]:
        raise ValueError(f"a file called {strange[0]!r}")
    for name, entry in manifest.files.items():
        if len(entry.steps) != len(manifest.outputs):
            raise ValueError(f"{len(entry.steps)} steps of {name} for {len(manifest.outputs)} outputs")
    return manifest
