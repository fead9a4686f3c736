"""A run's state in a file, so that a killed run goes on where it stopped and ends with the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.files import write_atomic

FORMAT, VERSION = "qn-deploy run", "2"  # 2: the hash covers the position, too
_ANOTHER = "give another file, or delete this one to start anew"


@dataclass(frozen=True)
class RunFile:
    """The file that holds a run's state: a safetensors file, whose metadata says how far the run had come.

    Attributes:
        path: of the file; it need not exist.
        run: `fingerprint` of what the run depends on. A file of another run is refused.
    """

    path: Path
    run: str

    def save(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Writes the state as a whole or not at all.

        Args:
            tensors: by name; they may share memory.
            position: JSON values, how far the run has come.

        Raises:
            InputError: the file can't be written.
        """
        own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        told = {"format": FORMAT, "version": VERSION, "run": self.run, "position": json.dumps(dict(position))}
        metadata = told | {"sha256": fingerprint(told["position"], own)}
        write_atomic(self.path, save(own, metadata))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The tensors and the position last saved; None if there is no file yet.

        Raises:
            InputError: the file is something else, damaged, or of another run; or its folder is missing.
        """
        if not self.path.parent.is_dir():  # better now than after the first hour
            raise InputError(f"{self.path} can't keep a run's state: there is no folder {self.path.parent}; make it, or give another file")
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self.path} is no state of a run, or cut short: {error}; {_ANOTHER}") from None
        if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION) or not {"run", "position", "sha256"} <= metadata.keys():
            raise InputError(f"{self.path} is a safetensors file, but not the state of a run of this version; {_ANOTHER}")
        if metadata["sha256"] != fingerprint(metadata["position"], tensors):
            raise InputError(f"{self.path} is damaged: what it holds does not have the hash that was written with it; {_ANOTHER}")
        if metadata["run"] != self.run:
            raise InputError(
                f"{self.path} is the state of another run: the model, the teacher, the recipe, the settings or the first batch differ; "
                f"resume with the same ones, and batches in the same order, or {_ANOTHER}"
            )
        return tensors, json.loads(metadata["position"])


def fingerprint(*parts: str | Mapping[str, Tensor]) -> str:
    """sha256, in hex, of texts and of tensors with their names, dtypes and shapes."""
    whole = sha256()
    for part in parts:
        if isinstance(part, str):
            whole.update(part.encode() + b"\0")
            continue
        for name in sorted(part):
            tensor = part[name].detach().cpu().contiguous()
            whole.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
            whole.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
