"""Rungs 3 and 4 of the parity ladder on a device: against the reference, against this machine, and between the runtimes there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import repeat

from qn_deploy.exporting.golden import Vectors
from qn_deploy.exporting.isolated import Run
from qn_deploy.exporting.manifest import Manifest
from qn_deploy.program.program import Batch
from qn_deploy.verification.devices.device import Device
from qn_deploy.verification.devices.run import Timed, run_on
from qn_deploy.verification.judge import Check, compare_runtimes, expected_of, identical, judge


def climb(
    device: Device,
    manifest: Manifest,
    golden: Vectors,
    runs: Mapping[str, tuple[Run, ...]],
    here: Mapping[str, Batch],
    progress: Callable[[str], None] = lambda stage: None,
) -> list[Check]:
    """Runs each file of a build on a device.

    A program that must equal the integer reference bit for bit must give the same bits on every machine; another one must agree with this
    machine as closely as with its reference.

    Args:
        device: where.
        manifest: of the build.
        golden: its golden vectors.
        runs: by file name the program as shipped and, if it has such a form, with dense weights.
        here: by file name what this machine made of the inputs; without the files that failed here.
        progress: called with the name of each stage.

    Raises:
        ToolchainError: the device can't be reached, or has no runner for a file.
    """
    checks, outputs = [], {}
    for name, entry in manifest.files.items():
        progress(f"{name} on {device.name}")
        what, expected = f"{name} on {device.name}", expected_of(entry, golden)
        results = run_on(device, entry.exporter, runs[name], golden.inputs)
        shipped, *twins = (result.outputs if isinstance(result, Timed) else result for result in results)
        checks.append(judge(3, f"{what} to {expected.what}", shipped, expected.outputs, manifest, entry, expected.criteria))
        if not isinstance(shipped, tuple):
            continue
        checks += [judge(4, f"{what}, tables to dense weights", twin, shipped, manifest, entry, repeat(identical)) for twin in twins]
        if name in here:
            checks.append(judge(4, f"{what} to this machine", shipped, here[name], manifest, entry, expected.criteria))
        outputs[name] = shipped
    return checks + compare_runtimes(manifest, outputs, f" on {device.name}")
