"""Runs program files on a device."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qn_deploy.errors import QnDeployError, ToolchainError
from qn_deploy.exporting.isolated import Run, RuntimeFailure
from qn_deploy.exporting.runner import Runner, find_runners
from qn_deploy.program.program import Batch
from qn_deploy.verification.devices import tensors
from qn_deploy.verification.devices.bundle import find_bundle
from qn_deploy.verification.devices.device import Device, Ended, last_line


@dataclass(frozen=True)
class Timed:
    """What a program gave on a device.

    Attributes:
        outputs: one tensor for each output.
        times: what the runner measured: load_ms, first_ms, and with repeats median_ms and min_ms, in milliseconds, and what else it knows.
            On an emulated device they are no measure of speed.
    """

    outputs: Batch
    times: dict[str, float]


def run_on(
    device: Device,
    exporter: str,
    runs: tuple[Run, ...],
    inputs: Batch,
    repeats: int = 0,
    options: tuple[str, ...] = (),
    timeout_s: float = 600.0,
) -> tuple[Timed | RuntimeFailure, ...]:
    """Runs each program on the same inputs, each in a process of its own.

    Args:
        device: where.
        exporter: name of the exporter whose runtime to use.
        runs: the programs.
        inputs: one batch.
        repeats: how often each is run again, for its times.
        options: further options of the runner.
        timeout_s: seconds after which a program is ended.

    Returns:
        For each run its outputs and times, or how it failed.

    Raises:
        ToolchainError: the bundle is missing, the exporter has no runner, or the device can't be reached.
    """
    runners = find_runners()
    if exporter not in runners:
        raise ToolchainError(f"the exporter {exporter!r} brings no runner for devices: its files run on this machine only")
    runner, bundle = runners[exporter], find_bundle()
    if not device.has(bundle.name):
        device.put(bundle, bundle.name)
    folder = f"run-{secrets.token_hex(6)}"
    with TemporaryDirectory(prefix="qn-deploy-") as temporary:
        here = Path(temporary)
        (here / "sent").mkdir()
        (here / "sent/inputs").write_bytes(tensors.to_bytes(inputs))
        for index, run in enumerate(runs):
            (here / f"sent/{index}").mkdir()
            for name, data in {"program": run.data, **run.parts}.items():
                (here / f"sent/{index}" / name).write_bytes(data)
        device.put(here / "sent", folder)
        try:
            fixed = (*runner.options, *options, "--runs", str(repeats))
            ended = [
                device.run(bundle.name, runner.program, (*_paths(folder, index), *fixed, *_plain(runner, run)), timeout_s)
                for index, run in enumerate(runs)
            ]
            device.get(folder, here / "got")
        finally:
            device.remove(folder)
        return tuple(_read(end, here / f"got/{index}/outputs", runner) for index, end in enumerate(ended))


def _paths(folder: str, index: int) -> tuple[str, str, str]:
    return f"{folder}/{index}/program", f"{folder}/inputs", f"{folder}/{index}/outputs"


def _plain(runner: Runner, run: Run) -> tuple[str, ...]:
    return () if run.optimized else runner.plain


def _read(ended: Ended, outputs: Path, runner: Runner) -> Timed | RuntimeFailure:
    if ended.code:
        reason = last_line(ended.err).removeprefix(f"{runner.program}: ")
        return RuntimeFailure(f"the runtime {ended.ending}" + (f": {reason}" if ended.code == 1 and reason else ""))
    try:
        return Timed(tensors.from_bytes(outputs.read_bytes()), json.loads(last_line(ended.out)))
    except (OSError, ValueError, QnDeployError) as error:
        return RuntimeFailure(f"{runner.program} ended well, without what it should give ({error})")
