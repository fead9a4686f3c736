"""Times and memory of programs: each loaded in a process of its own, then all in turn, so that all see the same noise."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from qn_deploy.errors import InputError, first_line
from qn_deploy.exporting.exporter import NO_PARTS, find_exporters
from qn_deploy.memory import give_back
from qn_deploy.program.program import Batch

Call = Callable[[Batch], Batch]
Opened = Callable[[bytes, Mapping[str, bytes]], Call]


@dataclass(frozen=True)
class Alone:
    """What was measured in a process of its own: ms, and MB as `Times` has them."""

    load: float
    first: float
    peak: float
    resident: float | None


@dataclass(frozen=True)
class Subject:
    """A program to measure.

    Attributes:
        name: what it is.
        exporter: whose runtime runs it.
        data: the file's bytes.
        parts: files that belong to it.
        opened: makes a call of data and parts, as a process of its own can import it; None takes the exporter's.
    """

    name: str
    exporter: str
    data: bytes
    parts: Mapping[str, bytes]
    opened: Opened | None = None


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
        resident_mb: what the program itself keeps after a run: weights, and what it needs for the next run; without the runtime's
            libraries, and without the file. None where the system does not tell it.
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
    resident_mb: float | None


def measure(subjects: Sequence[Subject], batches: Sequence[Batch], rounds: int = 40) -> list[Times]:
    """Measures programs on batches of several sizes.

    Args:
        subjects: in the order of the result.
        batches: that each runs, in the order of the result; the memory told for one is the peak up to it.
        rounds: how often each runs, in turn with the others; the first quarter warms up.

    Raises:
        InputError: an exporter gives no program that stays loaded, or one does not run.
    """
    alone = _in_processes(subjects, batches)
    calls = [_opened(subject) for subject in subjects]
    found = []
    for index, inputs in enumerate(batches):
        for subject, told, each in zip(subjects, alone, _in_turn(calls, inputs, rounds), strict=True):
            lone = told[index]
            counted = sorted(each[rounds // 4 :])
            p90 = counted[min(len(counted) - 1, int(0.9 * len(counted)))]
            size = len(subject.data) + sum(map(len, subject.parts.values()))
            p50 = statistics.median(counted)
            found.append(
                Times(subject.name, subject.exporter, size, len(inputs[0]), lone.load, lone.first, p50, p90, lone.peak, lone.resident)
            )
    return found


def _in_turn(calls: Sequence[Call], inputs: Batch, rounds: int) -> list[list[float]]:
    """The times of each program in ms, a round of all after the other; each second one backwards, so that none always follows the same."""
    taken: list[list[float]] = [[] for _ in calls]
    for index in range(rounds):
        in_order = list(zip(calls, taken, strict=True))
        for call, kept in reversed(in_order) if index % 2 else in_order:
            start = time.perf_counter()
            call(inputs)
            kept.append(1e3 * (time.perf_counter() - start))
    return taken


def _opened(subject: Subject) -> Call:
    opened = subject.opened or getattr(find_exporters()[subject.exporter], "opened", None)
    if opened is None:
        raise InputError(f"the exporter {subject.exporter} has no method opened; its programs can't be timed")
    call: Call = opened(subject.data, subject.parts or NO_PARTS)
    return call


def _in_processes(subjects: Sequence[Subject], batches: Sequence[Batch]) -> list[list[Alone]]:
    """For each program, in a new process of its own, and for each batch: load in ms, first run in ms, MB."""
    arrays = [tuple(tensor.numpy() for tensor in inputs) for inputs in batches]  # tensors would be sent by shared memory
    # torch takes seconds to import: a server does it once, and each process begins as a copy of it, before any runtime is there.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    found = []
    for subject in subjects:
        with ProcessPoolExecutor(1, context) as pool:
            try:
                found.append(pool.submit(_alone, replace(subject, parts=dict(subject.parts)), arrays).result())
            except Exception as error:  # the runtime's own classes, or a process that ended
                raise InputError(f"{subject.name} does not run: {type(error).__name__}: {first_line(error, 'no message')[:200]}") from None
    return found


def _alone(subject: Subject, batches: Sequence[tuple[object, ...]]) -> list[Alone]:
    import torch

    before, found = _peak(), []
    for arrays in batches:
        inputs = tuple(torch.from_numpy(array) for array in arrays)
        _opened(subject)(inputs)
        peak = _peak() - before
        empty = _resident()
        start = time.perf_counter()
        call = _opened(subject)
        loaded = time.perf_counter()
        call(inputs)
        ran, full = time.perf_counter(), _resident()
        kept = None if full is None or empty is None else full - empty
        found.append(Alone(1e3 * (loaded - start), 1e3 * (ran - loaded), peak, kept))
        del call
    return found


def _peak() -> float:
    """Peak of the process's memory in MB; on Linux of this program alone, not of the one that started it."""
    peak = _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if peak is None else peak


def _resident() -> float | None:
    """The process's memory in MB without what was freed; None where the system does not tell it."""
    gc.collect()
    give_back()
    return _status("VmRSS")


def _status(field: str) -> float | None:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith(field)), None)
