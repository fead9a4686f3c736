"""manifest.json: what stands in a build folder, and what verification holds it to.

`read_manifest` is the only reader. What it gives is whole and typed (`schema.py`), the files that it names lie in the folder, are regular
and of their stated sizes, and the text is byte for byte what export wrote: it carries the sha256 of its own content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from qn_deploy.errors import InputError
from qn_deploy.exporting.config import ExportConfig, Scheme
from qn_deploy.exporting.exporter import WeightMemory
from qn_deploy.exporting.schema import from_json
from qn_deploy.files import MAX_BYTES, read_bytes

FORMAT, VERSION = "qn-deploy build", 5
MANIFEST, GOLDEN = "manifest.json", "golden.safetensors"
REPORT = "report.html"  # lies beside them, and is not listed: it may be drawn anew
MAX_MANIFEST = 64 << 20  # bytes
MAX_STEP = 3e38  # of float32

Sha256 = Annotated[str, re.compile("[0-9a-f]{64}")]
FileName = Annotated[str, re.compile(r"(?!manifest\.json$|golden\.safetensors$)[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")]
Size = Annotated[int, range(MAX_BYTES + 1)]
Count = Annotated[int, range(1 << 53)]
Dimension = Annotated[int, range(1 << 40)]
DType = Annotated[str, re.compile("(bfloat|float|u?int|complex)[0-9]{1,3}|bool")]


@dataclass(frozen=True)
class BesideEntry:
    """A file beside a program file: size and sha256."""

    bytes: Size
    sha256: Sha256


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
        memory: what each table takes once it is loaded, where the export chose which stay tables.
    """

    exporter: str
    runtime: str
    bytes: Size
    sha256: Sha256
    activations: Scheme
    steps: tuple[float | None, ...]
    notes: tuple[str, ...] = ()
    companions: dict[FileName, BesideEntry] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    parts: dict[FileName, BesideEntry] = field(default_factory=dict)
    inexact: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    memory: dict[str, WeightMemory] = field(default_factory=dict)

    @property
    def is_static(self) -> bool:
        """True if the ranges of its activations were calibrated."""
        return self.activations.startswith("static")


@dataclass(frozen=True)
class TensorEntry:
    """An input or output: name, torch dtype and shape (null where it is dynamic)."""

    name: str
    dtype: DType
    shape: tuple[Dimension | None, ...]


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

    kind: Literal["table", "int8", "int4"]
    shape: tuple[Dimension, ...]
    bytes: Count
    sha256: Sha256
    parts: tuple[Sha256, ...] = ()
    block_size: Dimension | None = None
    codebooks: Dimension | None = None
    centroids: Dimension | None = None
    residual: Dimension = 0
    scale: Annotated[str, re.compile("([0-9a-f]{64})?")] = ""

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
        golden_bytes: size of golden.safetensors, see `golden.py`.
        golden_sha256: its hash.
        theoretical_bytes: codes, centroids, scales, biases and uncompressed constants (paper section 3.3, eq. M).
        float_bytes: the same model with every constant as stored before compression (float32).
        left: weights that kept another form than the recipe asked for, with the reason.
    """

    config: ExportConfig
    activations: Scheme
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    files: dict[FileName, FileEntry]
    golden_bytes: Size
    golden_sha256: Sha256
    weights: dict[str, WeightEntry]
    theoretical_bytes: Count
    float_bytes: Count
    versions: dict[str, str]
    recipe: dict[str, Any] | None = None
    left: dict[str, str] = field(default_factory=dict)

    @property
    def listed(self) -> dict[str, BesideEntry]:
        """Size and hash of each file of the build but the manifest itself, by name."""
        found = {GOLDEN: BesideEntry(self.golden_bytes, self.golden_sha256)}
        for name, entry in self.files.items():
            found |= {name: BesideEntry(entry.bytes, entry.sha256), **entry.companions, **entry.parts}
        return found

    def to_json(self) -> str:
        """The text of manifest.json; keys sorted, so that the same build gives the same bytes. Its `sha256` is that of the text without."""
        return sealed({"format": FORMAT, "version": VERSION, **asdict(self)})


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a build folder.

    No file that it names is opened before all of it is checked, and each of them: a plain name, a regular file, of the stated size.

    Raises:
        InputError: the folder holds no manifest, one that this version can't read, that was changed, or that does not fit the folder.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise InputError(f"{folder} holds no {MANIFEST}; it is not the folder of an export. Write one: qn-deploy export model.pt")
    data = read_bytes(path, MAX_MANIFEST, links=False)
    try:
        content = json.loads(data)
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise InputError(f"{path} is no manifest of qn-deploy; export the model again with qn-deploy export")
        if (version := content.pop("version", None)) != VERSION:
            raise InputError(f"{path} has version {str(version)[:20]}, this qn-deploy reads version {VERSION}; export the model again")
        content.pop("sha256", None)  # it is compared with the whole text
        manifest: Manifest = from_json(Manifest, content)
        _check(manifest)
        if manifest.to_json().encode() != data:
            raise ValueError("it is not as export wrote it: its sha256 is that of another text")
    except (ValueError, RecursionError, InputError) as error:
        if isinstance(error, InputError) and str(path) in str(error):
            raise
        raise InputError(f"{path} is damaged ({error}); export the model again with qn-deploy export") from None
    for name, entry in manifest.listed.items():
        _check_file(folder / name, entry)
    return manifest


def read_listed(folder: Path, name: str, manifest: Manifest) -> bytes:
    """A file that a manifest lists.

    Raises:
        InputError: it can't be read, or is not the one that was exported.
    """
    path, entry = folder / name, manifest.listed[name]
    _check_file(path, entry)
    data = read_bytes(path, entry.bytes, links=False)
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputError(f"{path} is not the file that was exported: its sha256 differs from the manifest's. Export the model again")
    return data


def listed_names(folder: Path) -> set[str]:
    """The names that a manifest gives to files of its own, even if it is of another version; none if there is no such manifest.

    What they name goes away with the build that they belong to, so only plain names count.
    """
    try:
        files = json.loads(read_bytes(folder / MANIFEST, MAX_MANIFEST, links=False))["files"]
        names = [name for file, entry in files.items() for name in (file, *entry["companions"], *entry["parts"])]
        return {GOLDEN, MANIFEST, REPORT, *(name for name in names if isinstance(name, str) and Path(name).name == name)}
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def sealed(content: Mapping[str, Any]) -> str:
    """The text of a manifest with this content: the sha256 of the text without it is added."""
    return _text({**content, "sha256": hashlib.sha256(_text(content).encode()).hexdigest()})


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, indent=1, sort_keys=True) + "\n"


def _check_file(path: Path, entry: BesideEntry) -> None:
    try:
        found = os.lstat(path)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); the manifest lists it. Export the model again") from None
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is no regular file (a link, folder, pipe or device); the manifest lists it. Export the model again")
    if found.st_size != entry.bytes:
        message = f"{path} is not the file that was exported: it holds {found.st_size:,} bytes, {entry.bytes:,} in the manifest"
        raise InputError(f"{message}. Export the model again")


def _check(manifest: Manifest) -> None:
    """What decides how strict the rungs are does not contradict itself."""
    if not manifest.files:
        raise ValueError("it lists no program")
    if not manifest.inputs or not manifest.outputs:
        raise ValueError("it lists no input or no output")
    names = [GOLDEN, *(name for file, entry in manifest.files.items() for name in (file, *entry.companions, *entry.parts))]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"it lists {twice[0]} twice")
    exporters = [entry.exporter for entry in manifest.files.values()]
    if len(set(exporters)) != len(exporters):
        raise ValueError("an exporter wrote two programs")
    for name, entry in manifest.files.items():
        if len(entry.steps) != len(manifest.outputs):
            raise ValueError(f"{len(entry.steps)} steps of {name} for {len(manifest.outputs)} outputs")
        if any(step is not None and not 0 < step < MAX_STEP for step in entry.steps):
            raise ValueError(f"steps of {name} are {entry.steps}")
        if not entry.is_static and entry.inexact:
            raise ValueError(f"{name} is not static, and has operators without an exact rule")
    for name, weight in manifest.weights.items():
        sizes = (weight.block_size, weight.codebooks, weight.centroids)
        if (weight.kind == "table") != (None not in sizes) or (weight.kind != "table" and any(size is not None for size in sizes)):
            raise ValueError(f"the weight {name} is {weight.kind}, with the sizes {sizes} of a table")
        if len(weight.parts) != 2 * weight.is_table * (2 if weight.residual else 1):
            raise ValueError(f"the weight {name} is {weight.kind}, with {len(weight.parts)} hashes of parts")
