"""golden.safetensors: example inputs, and what the float model, the simulated programs and the integer references make of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, FileEntry, Manifest, TensorEntry, read_listed
from qn_deploy.program.program import Batch

# The file's keys are INPUT/I, FLOAT/I, SIMULATED/EXPORTER/I and REFERENCE/EXPORTER/I; I counts from 0. The app reads them as well.
ROUNDING, MAX_LEVELS = 1e-5, 255  # of a product that was rounded to float32; int8 less a zero point of int8
INPUT, FLOAT, SIMULATED, REFERENCE = "input", "float", "simulated", "reference"


@dataclass(frozen=True)
class Vectors:
    """Golden vectors.

    Attributes:
        inputs: example inputs.
        floats: outputs of the unquantized model.
        simulated: outputs of the simulated program of each file, by its exporter's name.
        references: outputs of the integer reference of each static file, by its exporter's name.
    """

    inputs: Batch
    floats: Batch
    simulated: dict[str, Batch]
    references: dict[str, Batch]

    def expected(self, entry: FileEntry) -> Batch:
        """What the runtime of a file has to give: its integer reference if it is static, else its simulated program."""
        return (self.references if entry.is_static else self.simulated)[entry.exporter]

    def to_bytes(self) -> bytes:
        """The file; the same vectors give the same bytes."""
        batches = {INPUT: self.inputs, FLOAT: self.floats}
        batches |= {f"{SIMULATED}/{name}": batch for name, batch in self.simulated.items()}
        batches |= {f"{REFERENCE}/{name}": batch for name, batch in self.references.items()}
        tensors = {f"{prefix}/{index}": tensor for prefix, batch in batches.items() for index, tensor in enumerate(batch)}
        return save({key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()})


def read_vectors(folder: Path, manifest: Manifest) -> Vectors:
    """The golden vectors of a build, with every output that the rungs compare.

    Raises:
        InputError: the file is missing, damaged, does not hold them all, holds others, or holds no numbers.
    """
    path = folder / GOLDEN
    try:
        golden = load(read_listed(folder, GOLDEN, manifest))
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that torch does not have
        raise InputError(f"{path} is damaged ({error}); export the model again") from None

    def batch(prefix: str) -> Batch:
        found = _batch(golden, prefix)
        if prefix != INPUT and len(found) != len(manifest.outputs):
            raise InputError(f"{path} does not hold {prefix} for each of the {len(manifest.outputs)} outputs; export the model again")
        return found

    entries = manifest.files.values()
    vectors = Vectors(
        inputs=batch(INPUT),
        floats=batch(FLOAT),
        simulated={entry.exporter: batch(f"{SIMULATED}/{entry.exporter}") for entry in entries},
        references={entry.exporter: batch(f"{REFERENCE}/{entry.exporter}") for entry in entries if entry.is_static},
    )
    _check(vectors, manifest, golden, path)
    return vectors


def _check(vectors: Vectors, manifest: Manifest, golden: dict[str, Tensor], path: Path) -> None:
    """Every tensor has a place, and the form and the grid that the manifest states for it; references are judged on the rungs."""
    batches = [vectors.floats, *vectors.simulated.values()]
    if len(golden) != len(vectors.inputs) + sum(map(len, (*batches, *vectors.references.values()))):
        raise InputError(f"{path} holds vectors of a file that the manifest does not list; export the model again")
    for batch, entries in ((vectors.inputs, manifest.inputs), *((batch, manifest.outputs) for batch in batches)):
        if len(batch) != len(entries) or not all(map(_fits, batch, entries)):
            raise InputError(f"{path} holds other tensors than the manifest's inputs and outputs; export the model again")
    for name, entry in manifest.files.items():
        for step, tensor in zip(entry.steps, vectors.simulated[entry.exporter], strict=True):
            if step is not None and not _on_grid(tensor, step):
                raise InputError(f"{name} has the step {step:g} in {MANIFEST}, and {path} holds no multiples of it; export the model again")


def _fits(tensor: Tensor, entry: TensorEntry) -> bool:
    sizes = len(tensor.shape) == len(entry.shape) and all(own in (None, size) for own, size in zip(entry.shape, tensor.shape, strict=True))
    return sizes and str(tensor.dtype) == f"torch.{entry.dtype}"


def _on_grid(tensor: Tensor, step: float) -> bool:
    """True if these are products of a step and integers of 8 bits and a zero point of 8 bits."""
    levels = (tensor.double() / step).round()
    return bool(((levels * step - tensor).abs() <= ROUNDING * tensor.abs()).all()) and bool((levels.abs() <= MAX_LEVELS).all())


def _batch(golden: dict[str, Tensor], prefix: str) -> Batch:
    count = sum(name.rpartition("/")[0] == prefix for name in golden)
    try:
        return tuple(golden[f"{prefix}/{index}"] for index in range(count))
    except KeyError:
        return ()
