"""Programs of ExecuTorch measured by qn_runner: each is loaded and run in a process of its own, one thread."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qn_deploy.exporters.to_executorch import build


@dataclass(frozen=True)
class Loaded:
    """Over some processes: median milliseconds of loading, least of a run, median MB over what a process had before, and at the peak.

    The least of many runs in many processes, since where its weights come to lie in memory sets the time of a process by 10 % or more.
    """

    load_ms: float
    run_ms: float
    resident: float
    peak: float


class Runner:
    """qn_runner, which loads and runs a program in a process of its own, one thread."""

    def __init__(self, folder: Path, loads: int, runs: int, *options: str) -> None:
        """Builds qn_runner in a folder; `options` are given to it always."""
        self._folder, self._loads, self._runs, self._options = folder, loads, runs, options
        cmake = shutil.which("cmake") or sys.exit("no cmake on PATH, which builds qn_runner (Debian, Ubuntu: apt-get install cmake)")
        native = Path(build.__file__).parent / "native"
        for command in (("-S", native, "-B", folder, f"-DEXECUTORCH={build.find_package()}"), ("--build", folder)):
            subprocess.run([cmake, *command], check=True, capture_output=True)

    def load(self, x: Tensor, *programs: bytes) -> list[Loaded]:
        """Loads the programs in turn, again and again."""
        dtype = str(x.dtype).removeprefix("torch.")
        (self._folder / "inputs").write_bytes(f"{dtype} {' '.join(map(str, x.shape))}\n".encode() + x.numpy().tobytes())
        for index, program in enumerate(programs):
            (self._folder / f"{index}.pte").write_bytes(program)
        found = [[self._run(f"{index}.pte") for index in range(len(programs))] for _ in range(self._loads)]
        return [self._median([each[index] for each in found]) for index in range(len(programs))]

    def _run(self, program: str) -> dict[str, float]:
        command = [self._folder / "qn_runner", program, "inputs", "outputs", "--runs", str(self._runs), *self._options]
        done = subprocess.run(command, cwd=self._folder, check=True, capture_output=True, text=True)
        found: dict[str, float] = json.loads(done.stdout)
        return found

    @staticmethod
    def _median(found: list[dict[str, float]]) -> Loaded:
        def over(key: str, base: str | None = None) -> float:
            return statistics.median(each[key] - (each[base] if base else 0) for each in found)

        resident, peak = over("rss_loaded", "rss_before") / 2**20, over("rss_load_peak", "rss_before") / 2**20
        return Loaded(over("load_ms"), min(each["min_ms"] for each in found), resident, peak)
