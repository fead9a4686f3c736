"""Runs program files in a child process: a runtime that crashes is then a line of a report, not the end of the program."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import contiguous_format

from qn_deploy.errors import QnDeployError, first_line
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.program.program import Batch

TIMEOUT_S = 600.0


class RuntimeFailure(QnDeployError):
    """The runtime refused or crashed; the message says how."""


@dataclass(frozen=True)
class Run:
    """One run of a program file: its bytes, whether the runtime may rewrite the graph, and the files that belong to it."""

    data: bytes
    optimized: bool = True
    parts: Mapping[str, bytes] = field(default_factory=dict)


def run_isolated(exporter: str, runs: tuple[Run, ...], inputs: Batch, timeout_s: float = TIMEOUT_S) -> tuple[Batch | RuntimeFailure, ...]:
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
        with Child() as child:
            results += child.run([(exporter, run) for run in runs[len(results) :]], inputs, timeout_s)
    return tuple(results)


class Child:
    """A process of its own for runtimes. It starts at once, and imports what it needs while this process goes on."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="qn-deploy-")
        self._folder = Path(self._temporary.name)
        command = [sys.executable, "-m", "qn_deploy.exporting.isolated", self._temporary.name]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._temporary.cleanup()

    def run(self, runs: Sequence[tuple[str, Run]], inputs: Batch, timeout_s: float = TIMEOUT_S) -> list[Batch | RuntimeFailure]:
        """Runs programs, each on the runtime of the exporter named with it; a child does this once.

        Returns:
            For each run its outputs or how it failed, up to the first crash.
        """
        _write(inputs, self._folder / "inputs")
        for index, (_, run) in enumerate(runs):
            (self._folder / f"program{index}").write_bytes(run.data)
            (self._folder / f"parts{index}").mkdir()
            for part, data in run.parts.items():
                (self._folder / f"parts{index}" / part).write_bytes(data)
        request = [{"exporter": exporter, "optimized": run.optimized} for exporter, run in runs]
        ending = self._ending(json.dumps(request).encode(), timeout_s)
        results: list[Batch | RuntimeFailure] = []
        for index in range(len(runs)):
            if (failure := self._folder / f"failure{index}").exists():
                results.append(RuntimeFailure(failure.read_text()))
            elif (outputs := self._folder / f"outputs{index}").exists():
                results.append(_read(outputs))
            else:
                results.append(RuntimeFailure(f"the runtime {ending}"))
                break  # what comes after a crash was not tried
        return results

    def _ending(self, request: bytes, timeout_s: float) -> str:
        """Sends the request, waits for the child's end, and says how it ended."""
        try:
            self._process.communicate(request, timeout_s)
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout_s:g} s"
        code, log = self._process.returncode, (self._folder / "log").read_text(errors="replace").strip()
        if code < 0:
            return f"crashed with {signal.Signals(-code).name}"
        return f"ended with exit code {code}" + (f": {log.splitlines()[-1]}" if log else "")


def _write(batch: Batch, path: Path) -> None:
    # Clones: safetensors refuses tensors that share memory, and a runtime may give one tensor out twice.
    save_file({str(index): tensor.detach().clone(memory_format=contiguous_format) for index, tensor in enumerate(batch)}, path)


def _read(path: Path) -> Batch:
    tensors = load_file(path)
    return tuple(tensors[str(index)] for index in range(len(tensors)))


def _child(folder: Path) -> None:
    exporters = find_exporters()
    request = sys.stdin.read()
    if not request:
        return  # the parent has ended, or has nothing to run
    inputs = _read(folder / "inputs")
    for index, wanted in enumerate(json.loads(request)):
        parts = {part.name: part.read_bytes() for part in (folder / f"parts{index}").iterdir()}
        try:
            exporter = exporters[wanted["exporter"]]
            (outputs,) = exporter.run((folder / f"program{index}").read_bytes(), (inputs,), wanted["optimized"], parts)
        except Exception as error:  # whatever a runtime raises is a finding for the report
            (folder / f"failure{index}").write_text(f"{type(error).__name__}: {first_line(error, 'no message')}")
            continue
        # Written under another name first: a file that is there is whole.
        _write(outputs, folder / "unfinished")
        (folder / "unfinished").rename(folder / f"outputs{index}")


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
