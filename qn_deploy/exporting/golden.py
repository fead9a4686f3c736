"""golden.safetensors: example inputs, and what the float model, the simulated programs and the integer references make of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.exporting.manifest import FileEntry, Manifest, read_listed
from qn_deploy.program.program import Batch

# The file's keys are INPUT/I, FLOAT/I, SIMULATED/EXPORTER/I and REFERENCE/EXPORTER/I; I counts from 0. The app reads them as well.
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


def read_vectors(path: Path, manifest: Manifest) -> Vectors:
    """The golden vectors of a build, with every output that the rungs compare.

    Raises:
        InputError: the file is missing, damaged, or does not hold them all.
    """
    try:
        golden = load(read_listed(path, manifest.golden_sha256))
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}); export the model again") from None

    def batch(prefix: str) -> Batch:
        found = _batch(golden, prefix)
        if prefix != INPUT and len(found) != len(manifest.outputs):
            raise InputError(f"{path} does not hold {prefix} for each of the {len(manifest.outputs)} outputs; export the model again")
        return found

    entries = manifest.files.values()
    return Vectors(
        inputs=batch(INPUT),
        floats=batch(FLOAT),
        simulated={entry.exporter: batch(f"{SIMULATED}/{entry.exporter}") for entry in entries},
        references={entry.exporter: batch(f"{REFERENCE}/{entry.exporter}") for entry in entries if entry.is_static},
    )


def _batch(golden: dict[str, Tensor], prefix: str) -> Batch:
    count = sum(name.rpartition("/")[0] == prefix for name in golden)
    try:
        return tuple(golden[f"{prefix}/{index}"] for index in range(count))
    except KeyError:
        return ()
