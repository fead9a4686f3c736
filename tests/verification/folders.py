"""A build folder to be broken, and what the ladder says of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import safetensors.torch
from onnx import numpy_helper
from torch import Tensor

from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.isolated import Run
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, sealed
from qn_deploy.program.program import Batch
from qn_deploy.verification.judge import Check
from qn_deploy.verification.report import Report


class Folder:
    """A copy of a good build, to be broken."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def manifest(self, change: Callable[[dict[str, Any]], None]) -> None:
        data = json.loads((self.path / MANIFEST).read_text())
        del data["sha256"]
        change(data)
        (self.path / MANIFEST).write_text(sealed(data))

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file, and its hash with it: only the ladder can tell."""
        (self.path / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()

        def rehash(manifest: dict[str, Any]) -> None:
            if name == GOLDEN:
                manifest.update(golden_sha256=digest, golden_bytes=len(data))
            else:
                manifest["files"][name].update(sha256=digest, bytes=len(data))

        self.manifest(rehash)

    def companion(self, program: str, name: str, data: bytes) -> None:
        """Replaces a file beside a program, and its hash with it."""
        (self.path / name).write_bytes(data)
        entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.manifest(lambda manifest: manifest["files"][program]["companions"].update({name: entry}))

    def golden(self, change: Callable[[dict[str, Tensor]], object]) -> None:
        tensors = safetensors.torch.load((self.path / GOLDEN).read_bytes())
        change(tensors)
        self.write(GOLDEN, safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def graph(self, change: Callable[[onnx.GraphProto], object]) -> None:
        """Changes the graph of model.onnx."""
        proto = onnx.load_model_from_string((self.path / "model.onnx").read_bytes())
        change(proto.graph)
        self.write("model.onnx", proto.SerializeToString())

    def onnx(self, name: str, change: Callable[[np.ndarray], None]) -> None:
        """Changes the initializer `name` of model.onnx."""
        self.graph(lambda graph: set_constant(graph, name, change))

    def only(self, name: str) -> None:
        """Takes all that belongs to other programs out of the build."""
        entries = json.loads((self.path / MANIFEST).read_text())["files"]
        exporter = entries[name]["exporter"]
        self.manifest(lambda data: data.update(files={name: data["files"][name]}))
        for other in entries.keys() - {name}:
            (self.path / other).unlink()
        foreign = [f"{kind}/{entry['exporter']}/0" for entry in entries.values() for kind in ("simulated", "reference")]
        self.golden(lambda tensors: [tensors.pop(key) for key in foreign if f"/{exporter}/" not in key])

    @property
    def step(self) -> float:
        ((step,),) = {tuple(entry["steps"]) for entry in json.loads((self.path / MANIFEST).read_text())["files"].values()}
        return float(step)

    def set(self, **fields: object) -> None:
        """Sets fields of every file's entry."""
        self.manifest(lambda data: [entry.update(fields) for entry in data["files"].values()])


def set_constant(graph: onnx.GraphProto, name: str, change: Callable[[np.ndarray], object]) -> None:
    """Changes the initializer `name`, in place."""
    (entry,) = [entry for entry in graph.initializer if entry.name == name]
    array = numpy_helper.to_array(entry).copy()
    change(array)
    entry.CopyFrom(numpy_helper.from_array(array, name))


def run_here(exporter: str, runs: tuple[Run, ...], inputs: Batch) -> tuple[Batch, ...]:
    """In place of `run_isolated`, in this process: isolation has its own tests, and a child takes seconds."""
    runtime = find_exporters()[exporter]
    return tuple(runtime.run(run.data, (inputs,), run.optimized, run.parts)[0] for run in runs)


def failed(report: Report) -> list[tuple[int, str]]:
    return [(check.rung, check.what) for check in report.checks if check.passed is False]


def line(report: Report, rung: int, what: str) -> Check:
    (check,) = [check for check in report.checks if check.rung == rung and check.what == what]
    return check
