"""Times and memory of programs: each loaded in a process of its own, then all run in turn, so that all see the same noise."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qn_deploy.errors import InputError
from qn_deploy.exporting.exporter import NO_PARTS, find_exporters
from qn_deploy.program.program import Batch

Call = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Subject:
    """A program to measure.

    Attributes:
        name: what it is.
        exporter: whose runtime runs it.
        data: the file's bytes.
        parts: files that belong to it.
    """

    name: str
    exporter: str
    data: bytes
    parts: Mapping[str, bytes]


@dataclass(frozen=True)
class Times:
    """What was measured of one program at one batch.

    Attributes:
        name: of the program.
        exporter: whose runtime ran it.
        bytes: of its file.
        batch: samples in one run.
        load_ms: until the program is open, in a new process, the runtime's libraries being loaded.
        first_ms: the first run after that, which plans and allocates.
        p50_ms, p90_ms: of the later runs, on one thread where the runtime can be told so.
        memory_mb: what the runtime, the program and a run add to the peak of a new process's memory; MB of 2^20 bytes.
    """

    name: str
    exporter: str
    bytes: int
    batch: int
    load_ms: float
    first_ms: float
    p50_ms: float
    p90_ms: float
    memory_mb: float


def measure(subjects: Sequence[Subject], inputs: Batch, rounds: int = 40) -> list[Times]:
    """Measures programs on one batch.

    Args:
        subjects: in the order of the result.
        inputs: the batch that each runs.
        rounds: how often each runs, in turn with the others; the first quarter warms up.

    Raises:
        InputError: an exporter gives no program that stays loaded, or one does not run.
    """
    alone = [_in_a_process(subject, inputs) for subject in subjects]
    calls = [_opened(subject) for subject in subjects]
    taken: list[list[float]] = [[] for _ in subjects]
    for _ in range(rounds):
        for call, kept in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call(inputs)
            kept.append(1e3 * (time.perf_counter() - start))
    found = []
    for subject, (load, first, memory), each in zip(subjects, alone, taken, strict=True):
        counted = sorted(each[rounds // 4 :])
        p90 = counted[min(len(counted) - 1, int(0.9 * len(counted)))]
        size = len(subject.data) + sum(map(len, subject.parts.values()))
        found.append(Times(subject.name, subject.exporter, size, len(inputs[0]), load, first, statistics.median(counted), p90, memory))
    return found


def _opened(subject: Subject) -> Call:
    exporter = find_exporters()[subject.exporter]
    opened: Callable[[bytes, Mapping[str, bytes]], Call] | None = getattr(exporter, "opened", None)
    if opened is None:
        raise InputError(f"the exporter {subject.exporter} has no method opened; its programs can't be timed")
    return opened(subject.data, subject.parts or NO_PARTS)


def _in_a_process(subject: Subject, inputs: Batch) -> tuple[float, float, float]:
    """(load in ms, first run in ms, MB) in a new process."""
    arrays = tuple(tensor.numpy() for tensor in inputs)  # tensors would be sent by shared memory
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_alone, subject.exporter, subject.data, dict(subject.parts), arrays).result()
        except Exception as error:  # the runtime's own classes, or a process that ended
            raise InputError(f"{subject.name} does not run: {type(error).__name__}: {str(error).splitlines()[0][:200]}") from None


def _alone(exporter: str, data: bytes, parts: dict[str, bytes], arrays: tuple[object, ...]) -> tuple[float, float, float]:
    import torch

    inputs = tuple(torch.from_numpy(array) for array in arrays)
    opened = find_exporters()[exporter].opened  # type: ignore[attr-defined]
    before = _peak()
    opened(data, parts)(inputs)
    memory = _peak() - before
    start = time.perf_counter()
    call = opened(data, parts)
    loaded = time.perf_counter()
    call(inputs)
    ran = time.perf_counter()
    return 1e3 * (loaded - start), 1e3 * (ran - loaded), memory


def _peak() -> float:
    """Peak of the process's memory in MB; on Linux of this program alone, not of the one that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(float(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
