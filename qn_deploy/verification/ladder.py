"""The parity ladder: every export climbs it, one rung for each way in which a deployed model can be wrong.

    1 rewrite   the weights in the written file decode to the table's values, and the scales are there. Exact.
    2 export    the runtime without its optimizer against the simulated program: told where rung 3 fails, as it says whether the file is
                wrong or what the runtime made of it. In a deep network a rounding flip grows, so it has no limit.
    3 runtime   the runtime as shipped against the integer reference: bit-identical where every operator has an exact rule, else SQNR.
    4 twins     tables against dense int8 weights: bit-identical; companion files rebuild the dense program: byte for byte;
                the runtimes against each other: at most 1 step where every operator has an exact rule.
    5 loss      the float model against the simulated program, for each output: reported; fails below a limit that the user sets, and where
                an output or a channel became constant.

Rungs 1-4 failing is a bug of ours; so a conversion bug and a quantization loss can't be mistaken for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

from qn_deploy.errors import QnDeployError, first_line
from qn_deploy.exporting.exporter import Exporter, TooLargeError, find_exporters
from qn_deploy.exporting.golden import Vectors, read_vectors
from qn_deploy.exporting.isolated import Run, RuntimeFailure, run_isolated
from qn_deploy.exporting.manifest import FileEntry, Manifest, read_listed, read_manifest
from qn_deploy.program.program import Batch, Program
from qn_deploy.verification.claims import check_listed, check_tables
from qn_deploy.verification.devices.climb import climb
from qn_deploy.verification.devices.find import CPU, open_device
from qn_deploy.verification.judge import Check, compare_runtimes, expected_of, identical, judge, similar
from qn_deploy.verification.loss import check_loss
from qn_deploy.verification.report import Report

_AT_ONCE = 128 << 20  # bytes of float models whose files are checked at the same time; of larger ones memory counts more than seconds


def verify(
    folder: str | Path,
    min_sqnr_db: float | None = None,
    devices: tuple[str, ...] = (),
    model: str | Path | Program | None = None,
    progress: Callable[[str], None] = lambda stage: None,
) -> Report:
    """Climbs the ladder for every file of a build folder, on the real runtimes of this machine and rungs 3 and 4 on devices.

    Args:
        folder: a folder that export wrote.
        min_sqnr_db: limit of rung 5 in dB; None only reports it.
        devices: names of other machines that run the files as well: qemu[:CPU], adb[:SERIAL], ssh:HOST.
        model: the model.pt that was exported, or its program, to judge each layer by itself as well.
        progress: called with the name of each stage.

    Raises:
        InputError: the folder is no build, a file is missing or differs from its hash in the manifest, or the model is another one.
        ToolchainError: a device can't be reached, or what it needs here is missing.
    """
    folder = Path(folder)
    machines = tuple(open_device(name) for name in devices if name != CPU)  # this machine runs them anyway
    manifest = read_manifest(folder)
    exporters = find_exporters()
    check_listed(folder, manifest, exporters)
    golden = read_vectors(folder, manifest)
    files = {name: _read_files(folder, name, manifest) for name, entry in manifest.files.items()}
    checks: list[Check] = []
    outputs: dict[str, Batch] = {}
    progress(", ".join(f"{name} on {entry.runtime}" for name, entry in manifest.files.items()))

    def check_file(name: str) -> tuple[list[Check], Batch | None]:
        entry = manifest.files[name]
        return _check_file(manifest, entry, name, files[name], exporters[entry.exporter], golden)

    at_once = len(files) if len(files) * manifest.float_bytes <= _AT_ONCE else 1  # the tables of each are expanded
    with ThreadPoolExecutor(at_once) as pool:  # each waits for a child process most of the time
        for name, (file_checks, result) in zip(files, pool.map(check_file, files), strict=True):
            checks += file_checks
            if result is not None:
                outputs[name] = result
    if not manifest.weights:
        checks.append(Check(1, "compressed weights", "none: the model is as large as before", "at least one", False))
    checks += compare_runtimes(manifest, outputs)
    runs = {name: _runs(files[name], exporters[entry.exporter]) for name, entry in manifest.files.items()} if machines else {}
    for device in machines:
        checks += climb(device, manifest, golden, runs, outputs, progress)
    checks += check_loss(manifest, golden, min_sqnr_db)
    report = Report(str(folder), manifest, ())
    if model is not None:
        from qn_deploy.verification.layers import check_layers  # it reads models: seconds of imports

        checks += check_layers(report, model, machines, progress)
    return replace(report, checks=tuple(sorted(checks, key=lambda check: check.rung)))


@dataclass(frozen=True)
class _Files:
    """A program file's bytes, and those of the files beside it."""

    data: bytes
    companions: dict[str, bytes]
    parts: dict[str, bytes]


def _read_files(folder: Path, name: str, manifest: Manifest) -> _Files:
    entry = manifest.files[name]
    companions, parts = ({beside: read_listed(folder, beside, manifest) for beside in files} for files in (entry.companions, entry.parts))
    return _Files(read_listed(folder, name, manifest), companions, parts)


def _check_file(
    manifest: Manifest, entry: FileEntry, name: str, files: _Files, exporter: Exporter, golden: Vectors
) -> tuple[list[Check], Batch | None]:
    runs = [Run(files.data, parts=files.parts)]
    try:
        checks = [_check_weights(manifest, entry, name, exporter.weight_hashes(files.data, files.parts))]
        if strange := check_tables(manifest, name, exporter.table_hashes(files.data, files.parts)):
            checks.append(strange)
        dense = exporter.dense(files.data, files.parts)
        runs.append(Run(dense))
    except TooLargeError as error:
        checks.append(Check(4, f"{name}, tables to dense weights", str(error), "not compared", None))
    except Exception as error:  # of a file that was made to deceive, a reader may raise anything
        return [Check(1, f"{name}: weights", _told(error), "decode", False)], None
    shipped, *twins = run_isolated(entry.exporter, tuple(runs), golden.inputs)
    expected = expected_of(entry, golden)
    runtime = judge(3, f"{name} to {expected.what}", shipped, expected.outputs, manifest, entry, expected.criteria)
    checks.append(runtime)
    if not runtime.passed and exporter.optimizes:
        (plain,) = run_isolated(entry.exporter, (Run(files.data, optimized=False, parts=files.parts),), golden.inputs)
        simulated = golden.simulated[entry.exporter]
        export = judge(2, f"{name}, optimizer off, to simulation", plain, simulated, manifest, entry, repeat(similar()))
        checks.append(replace(export, limit="told where rung 3 fails: far off, the file is wrong, else the runtime", passed=None))
    if entry.inexact:
        checks.append(Check(3, f"{name}: operators without an exact rule", ", ".join(entry.inexact), "--layers MODEL judges each", None))
    if isinstance(shipped, RuntimeFailure):
        return checks, None
    checks += [judge(4, f"{name}, tables to dense weights", twin, shipped, manifest, entry, repeat(identical)) for twin in twins]
    if files.companions and twins:
        checks.append(_check_companions(files.companions, dense, exporter))
    return checks, shipped


def _told(error: Exception) -> str:
    """One line on an error, with its class where it is not one of ours."""
    words = first_line(error, "no message")[:300]
    return words if isinstance(error, QnDeployError) else f"{type(error).__name__}: {words}"


def _runs(files: _Files, exporter: Exporter) -> tuple[Run, ...]:
    """The file as it is, and with dense weights if it has such a form."""
    shipped = Run(files.data, parts=files.parts)
    try:
        return shipped, Run(exporter.dense(files.data, files.parts))
    except Exception:  # reported by the climb on this machine
        return (shipped,)


def _check_companions(companions: dict[str, bytes], dense: bytes, exporter: Exporter) -> Check:
    try:
        identical = exporter.rebuild(companions) == dense
        found = "byte-identical" if identical else "other bytes"
    except Exception as error:
        found, identical = _told(error), False
    return Check(4, f"{', '.join(companions)} to the dense program", found, "byte-identical", identical)


def _check_weights(manifest: Manifest, entry: FileEntry, name: str, found: set[str]) -> Check:
    """Each table of the file with its scales; one that was stored dense or folded away on purpose is named and not wrong."""
    tables = {weight: known for weight, known in manifest.weights.items() if known.is_table}
    missing = {
        weight
        for weight, known in tables.items()
        if (known.sha256 not in found and not found.issuperset(known.parts)) or (known.scale and known.scale not in found)
    }
    meant = {"stored dense": missing.intersection(entry.dense), "folded into a constant": missing.intersection(entry.folded)}
    wrong = missing.difference(*meant.values())
    count = len(tables) - len(missing) + len(wrong)
    said = {"wrong": wrong, **meant}
    listed = [f"{what}: {', '.join(sorted(weights))}" for what, weights in said.items() if weights]
    verdict = "; ".join((f"{count - len(wrong)} of {count} tables", *listed))
    return Check(1, f"{name}: weights decode to the table", verdict, "exact", not wrong if count else None)
