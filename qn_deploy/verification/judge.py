"""What agreement is enough: two results are compared output by output, by a criterion, and the finding is a line of the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations, repeat

from torch import Tensor

from qn_deploy.exporting.golden import Vectors
from qn_deploy.exporting.isolated import RuntimeFailure
from qn_deploy.exporting.manifest import FileEntry, Manifest
from qn_deploy.program.program import Batch
from qn_deploy.verification.numerics import Agreement, compare

MIN_SQNR_DB = 40.0  # runtime against simulation, where no exact rule exists: one rounding moves what follows it by a step
BELOW_LOSS_DB = 20.0  # an error that is a tenth of quantization's own is no fault: what multiplies the one in a deep network does the other
LEAST_SQNR_DB = 20.0  # whatever the loss
MIN_SQNR_FLOAT_DB = 60.0  # where nothing is rounded: floats summed in another order lie above 100 dB
MAX_STEPS_TWINS = 1  # runtimes against each other
ROUNDING = 1e-3  # of a step: outputs are step * integer in float32


@dataclass(frozen=True)
class Check:
    """One line of the report: a rung, what was compared, what was found, and the verdict (None where there is no limit)."""

    rung: int
    what: str
    found: str
    limit: str
    passed: bool | None


Criterion = Callable[[Agreement], tuple[bool, str]]


def within(steps: int) -> Criterion:
    """At most so many steps; where an output has no step, as `similar`."""

    def criterion(result: Agreement) -> tuple[bool, str]:
        if result.steps is None:
            return similar()(result)
        return result.steps <= steps + ROUNDING, f"<= {steps} step" + "s" * (steps != 1)

    return criterion


def identical(result: Agreement) -> tuple[bool, str]:
    """Every bit."""
    return result.identical, "bit-identical"


def similar(loss_db: float = math.inf) -> Criterion:
    """SQNR, for an output that quantization leaves an SQNR of `loss_db` to the float model. Not the largest entry of each row as well: at
    this SQNR another one is largest only where the two are next to equal, and images or hidden states have no classes.
    """
    limit = max(LEAST_SQNR_DB, min(MIN_SQNR_DB, loss_db + BELOW_LOSS_DB))
    words = f"SQNR >= {limit:g} dB" if limit == MIN_SQNR_DB else f"SQNR >= {limit:.1f} dB: a tenth of the error of quantization"
    return lambda result: (result.sqnr_db >= limit, words)


def close(result: Agreement) -> tuple[bool, str]:
    """SQNR of what is computed in floats from end to end."""
    return result.sqnr_db >= MIN_SQNR_FLOAT_DB, f"SQNR >= {MIN_SQNR_FLOAT_DB:g} dB"


def judge(
    rung: int,
    what: str,
    found: Batch | RuntimeFailure,
    expected: Batch,
    manifest: Manifest,
    entry: FileEntry,
    criteria: Iterable[Criterion],
) -> Check:
    """A line of the report: what was found against what is expected, for all outputs, each by its criterion; `entry` knows their steps."""
    if isinstance(found, RuntimeFailure):
        return Check(rung, what, str(found), "runs", False)
    if (forms := _forms(found)) != (wanted := _forms(expected)):
        return Check(rung, what, forms, wanted, False)
    if len(found) != len(manifest.outputs):
        return Check(rung, what, f"{len(found)} outputs", f"{len(manifest.outputs)} outputs", False)
    if not any(tensor.numel() for tensor in expected):
        return Check(rung, what, "no values: nothing was compared", "values", False)
    pairs = zip(entry.steps, outputs_of(manifest, found, expected), strict=True)
    checks = [
        judge_output(rung, what, one, other, step, criterion, label)
        for criterion, (step, (label, one, other)) in zip(criteria, pairs, strict=False)  # `repeat` has no end
    ]
    limits = dict.fromkeys(check.limit for check in checks)
    return Check(rung, what, "; ".join(check.found for check in checks), "; ".join(limits), all(check.passed for check in checks))


def judge_output(rung: int, what: str, found: Tensor, expected: Tensor, step: float | None, criterion: Criterion, label: str = "") -> Check:
    """The same for one output of the form that is expected. Integers and truth values have to be equal, whatever the criterion."""
    result = compare(found, expected, step)
    passed, limit = (criterion if result.is_float else identical)(result)
    return Check(rung, what, describe(result) + label, limit, passed)


def _forms(batch: Batch) -> str:
    return ", ".join(map(form_of, batch))


def form_of(tensor: Tensor) -> str:
    """Type and shape: "float32 [4, 10]"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def describe(result: Agreement) -> str:
    """An agreement in words."""
    if result.identical:
        return "bit-identical"
    if not result.is_float:
        return f"{result.differing:.2%} of values differ"
    if result.steps is not None:
        steps = f"{result.steps:.0f}"  # "nan" and "inf" too
        return f"{steps} step{'s' * (steps != '1')}, {result.differing:.2%} of values, SQNR {result.sqnr_db:.1f} dB"
    return f"SQNR {result.sqnr_db:.1f} dB, top-1 {result.top1:.1%}"


def outputs_of(manifest: Manifest, found: Batch, expected: Batch) -> list[tuple[str, Tensor, Tensor]]:
    """(label, found, expected) of each output; the label is empty where there is one."""
    labels = [f" [{entry.name}]" if len(manifest.outputs) > 1 else "" for entry in manifest.outputs]
    return list(zip(labels, found, expected, strict=True))


@dataclass(frozen=True)
class Expected:
    """What a runtime must agree with on rung 3: a name for it, the outputs, and how closely each."""

    what: str
    outputs: Batch
    criteria: tuple[Criterion, ...]


def expected_of(entry: FileEntry, golden: Vectors) -> Expected:
    """The integer reference of a static file, bit for bit if each operator has an exact rule; else the simulation."""
    outputs = golden.expected(entry)
    what = "integer reference" if entry.is_static else "simulation"
    if entry.activations == "none" or (entry.is_static and not entry.inexact):
        return Expected(what, outputs, (identical if entry.is_static else close,) * len(outputs))
    return Expected(what, outputs, tuple(similar(_loss_db(one, other)) for one, other in zip(outputs, golden.floats, strict=True)))


def _loss_db(quantized: Tensor, float_output: Tensor) -> float:
    return compare(quantized, float_output).sqnr_db if form_of(quantized) == form_of(float_output) else math.inf


def compare_runtimes(manifest: Manifest, outputs: Mapping[str, Batch], where: str = "") -> list[Check]:
    """A line for each pair of static files, by what the runtimes of one machine made of them: at most a step apart where each operator
    has an exact rule.

    Dynamic ranges are per tensor in one runtime and per row in the other: two programs.
    """
    static = {name: entry for name, entry in manifest.files.items() if entry.is_static and name in outputs}
    checks = []
    for first, second in combinations(static, 2):
        check = judge(
            4, f"{first} to {second}{where}", outputs[first], outputs[second], manifest, static[first], repeat(within(MAX_STEPS_TWINS))
        )
        exact = not (static[first].inexact or static[second].inexact)
        checks.append(check if exact else replace(check, limit="reported: operators without an exact rule", passed=None))
    return checks
