"""Runs a program file in a child process: a runtime that crashes is then a line of the report, not the end of the program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import contiguous_format

from qn_deploy.errors import QnDeployError
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.program.program import Batch


class RuntimeFailure(QnDeployError):
    """The runtime refused or crashed; the message says how."""


@dataclass(frozen=True)
class Run:
    """One run of a program file: its bytes, whether the runtime may rewrite the graph, and the files that belong to it."""

    data: bytes
    optimized: bool = True
    parts: Mapping[str, bytes] = field(default_factory=dict)


def run_isolated(exporter: str, runs: tuple[Run, ...], inputs: Batch, timeout_s: float = 600.0) -> tuple[Batch | RuntimeFailure, ...]:
    """Runs each program on the same inputs, all in one child process.

    Args:
        exporter: name of the exporter whose runtime to use.
        runs: the programs.
        inputs: one batch.
        timeout_s: seconds after which the child is killed.

    Returns:
        For each run its outputs, or how it failed. After a crash the remaining runs get a process of their own.
    """
    results: list[Batch | RuntimeFailure] = []
    while len(results) < len(runs):
        results += _run_some(exporter, runs[len(results) :], inputs, timeout_s)
    return tuple(results)


def _run_some(exporter: str, runs: tuple[Run, ...], inputs: Batch, timeout_s: float) -> list[Batch | RuntimeFailure]:
    with tempfile.TemporaryDirectory(prefix="qn-deploy-") as name:
        folder = Path(name)
        _write(inputs, folder / "inputs")
        for index, run in enumerate(runs):
            (folder / f"program{index}").write_bytes(run.data)
            (folder / f"parts{index}").mkdir()
            for part, data in run.parts.items():
                (folder / f"parts{index}" / part).write_bytes(data)
        (folder / "request.json").write_text(json.dumps({"exporter": exporter, "optimized": [run.optimized for run in runs]}))
        try:
            child = subprocess.run(
                [sys.executable, "-m", "qn_deploy.verification.isolated", name], capture_output=True, text=True, timeout=timeout_s
            )
            ending = f"ended with exit code {child.returncode}"
            if child.returncode < 0:
                ending = f"crashed with {signal.Signals(-child.returncode).name}"
            elif child.stderr.strip():
                ending += f": {child.stderr.strip().splitlines()[-1]}"
        except subprocess.TimeoutExpired:
            ending = f"did not end within {timeout_s:g} s"
        results: list[Batch | RuntimeFailure] = []
        for index in range(len(runs)):
            if (failure := folder / f"failure{index}").exists():
                results.append(RuntimeFailure(failure.read_text()))
            elif (outputs := folder / f"outputs{index}").exists():
                results.append(_read(outputs))
            else:
                results.append(RuntimeFailure(f"the runtime {ending}"))
                break  # what comes after a crash was not tried
        return results


def _write(batch: Batch, path: Path) -> None:
    # Clones: safetensors refuses tensors that share memory, and a runtime may give one tensor out twice.
    save_file({str(index): tensor.detach().clone(memory_format=contiguous_format) for index, tensor in enumerate(batch)}, path)


def _read(path: Path) -> Batch:
    tensors = load_file(path)
    return tuple(tensors[str(index)] for index in range(len(tensors)))


def _child(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    inputs = _read(folder / "inputs")
    exporter = find_exporters()[request["exporter"]]
    for index, optimized in enumerate(request["optimized"]):
        parts = {part.name: part.read_bytes() for part in (folder / f"parts{index}").iterdir()}
        try:
            (outputs,) = exporter.run((folder / f"program{index}").read_bytes(), (inputs,), optimized, parts)
        except Exception as error:  # whatever a runtime raises is a finding for the report
            (folder / f"failure{index}").write_text(f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0])
            continue
        # Written under another name first: a file that is there is whole.
        _write(outputs, folder / "unfinished")
        (folder / "unfinished").rename(folder / f"outputs{index}")


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
