"""Paired timings: two programs run in turn, A B A B, so that both see the same noise of the machine; the result is a ratio of medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import onnxruntime
import torch
from rows import Row
from torch import Tensor, nn

from qn_deploy.exporters.to_executorch.runtime import load_program
from qn_deploy.quiet import quiet

SAMPLE_S = 0.005  # a sample repeats its call until it lasts about this long
Call = Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """Median seconds of one call of A and of B."""

    first: float
    second: float

    @property
    def ratio(self) -> float:
        """A over B: below 1, A is faster."""
        return self.first / self.second


def paired(first: Call, second: Call, samples: int = 50) -> Pair:
    """Times two calls in turn, one thread.

    Args:
        first: A.
        second: B.
        samples: of each; the first quarter warms up and does not count.
    """
    for call in (first, second):
        call()  # the first call loads and allocates
    repeats = [max(1, round(SAMPLE_S / _seconds(call, 3))) for call in (first, second)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(samples):
        for call, count, kept in zip((first, second), repeats, times, strict=True):
            kept.append(_seconds(call, count))
    medians = [statistics.median(kept[samples // 4 :]) for kept in times]
    return Pair(*medians)


def rows(name: str, first: str, second: str, pair: Pair) -> list[Row]:
    """The three rows of a pair: the ratio of the medians, then both medians."""
    return [
        Row(f"{name}: {first} / {second}", pair.ratio, "x"),
        Row(f"{name}: {first}, beside {second}", 1e3 * pair.first, "ms"),
        Row(f"{name}: {second}, beside {first}", 1e3 * pair.second, "ms"),
    ]


def onnxruntime_call(data: bytes, *inputs: Tensor) -> Call:
    """A call that runs an .onnx on one thread."""
    # Not the options of verification: session.x64quantprecision=1 halves the speed of a processor with VNNI, which needs no such help.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    feeds = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feeds)


def executorch_call(data: bytes, *inputs: Tensor) -> Call:
    """A call that runs a .pte on one thread."""
    program = load_program(data)
    one_thread()
    return lambda: program.run(inputs)


def float_onnx(model: nn.Module, *inputs: Tensor) -> bytes:
    """The float32 model as torch.onnx writes it: what the compressed program is compared with."""
    with quiet():
        program = torch.onnx.export(model.eval(), inputs, dynamo=True, verbose=False)
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


@cache
def one_thread() -> None:
    """ExecuTorch's threads belong to the process. XNNPACK takes them when a method is loaded, which is at its first run."""
    with quiet():
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    _unsafe_reset_threadpool(1)


def _seconds(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
