"""Instructions of 64-bit ARM that tables, dense int8 and float32 take on both runtimes: counted by qemu, so no measure of time."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

import click
import torch
from rows import Row, at_most, chosen, clock, finish, json_option, seed_option
from workloads import WORKLOADS, Workload, random_program

from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.isolated import Run, RuntimeFailure
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.capture import capture
from qn_deploy.verification.devices.device import Ended, call
from qn_deploy.verification.devices.qemu import Qemu
from qn_deploy.verification.devices.run import run_on

TITLE = "Instructions of 64-bit ARM"
PROCESSORS = ("cortex-a53", "cortex-a76")  # without and with dot products of int8
DEFAULT = ("Linear 1024x4096, static, batch 1", "Linear 1024x4096, dynamic, batch 1", "Conv 3x3 256", "MobileNet")
SAME = 1.01  # tables decoded at load are dense int8 from then on
REPEATS = 2
_PLUGIN = Path(__file__).parent / "native/count_instructions.c"


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="TEXT", help="Workloads whose name holds this, of all; may be repeated.")
@seed_option
@json_option
def main(only: tuple[str, ...], seed: int, json_file: Path | None) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    progress, rows = clock(), []
    names = [name for name in WORKLOADS if (any(text in name for text in only) if only else name in DEFAULT)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            devices = [Counting(cpu, build_plugin(Path(folder))) for cpu in PROCESSORS]
            for name in names:
                progress(name)
                rows += _workload(name, WORKLOADS[name], devices)
    except ToolchainError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(finish(TITLE, rows, chosen(), json_file))


def build_plugin(folder: Path) -> Path:
    """Compiles the plugin that counts.

    Raises:
        ToolchainError: there is no C compiler, or it fails.
    """
    plugin = folder / "count_instructions.so"
    ended = call(("cc", "-O2", "-shared", "-fPIC", "-o", str(plugin), str(_PLUGIN)))
    if ended.code:
        raise ToolchainError(f"cc {ended.ending}: {ended.err}")
    return plugin


class Counting(Qemu):
    """An emulated processor that counts what it executes.

    Attributes:
        counts: instructions of each program so far, from the start of its process to the end.
    """

    def __init__(self, cpu: str, plugin: Path) -> None:
        """Of this processor.

        Raises:
            ToolchainError: the qemu that takes plugins, which is not the static one, is not installed.
        """
        qemu = shutil.which("qemu-aarch64")
        if qemu is None:
            raise ToolchainError("there is no qemu-aarch64 on PATH; install it (Debian, Ubuntu: apt-get install qemu-user)")
        super().__init__(cpu, Path(qemu), ("-plugin", str(plugin)))
        self.counts: list[int] = []

    def run(self, bundle: str, program: str, arguments: tuple[str, ...], timeout_s: float) -> Ended:
        """Runs and counts.

        Raises:
            ToolchainError: qemu did not take the plugin.
        """
        ended = super().run(bundle, program, arguments, timeout_s)
        found = re.search(r"^instructions (\d+)$", ended.err, re.MULTILINE)
        if found is None:
            raise ToolchainError(f"qemu did not count ({ended.err.strip()}); qemu 7.2 of Debian 12 does")
        self.counts.append(int(found[1]))
        return ended


def _workload(name: str, workload: Workload, devices: list[Counting]) -> list[Row]:
    model, x = workload.make().eval(), workload.inputs()
    plain = capture(model, (x,), dynamic_shapes=())
    program = random_program(model, x, workload.recipe, workload.activations)
    rows = []
    for exporter_name, exporter in find_exporters().items():
        tables = write_file(exporter, program, workload.activations).data
        runs = (Run(tables), Run(exporter.dense(tables)), Run(write_file(exporter, plain, Activations.NONE).data))
        for device in devices:
            what = f"{name}, {exporter_name}, {device.name.removeprefix('qemu:')}"
            once, more = (_count(device, exporter_name, runs, x, repeats) for repeats in (0, REPEATS))
            each = [(two - one) / REPEATS for one, two in zip(once, more, strict=True)]
            load = [one - run for one, run in zip(once, each, strict=True)]
            rows += [
                at_most(f"{what}: a run, tables to dense int8", each[0] / each[1], "x", SAME),
                Row(f"{what}: a run, tables to float32", each[0] / each[2], "x"),
                Row(f"{what}: a run, tables", each[0] / 1e6, "million"),
                Row(f"{what}: process and load, tables to dense int8", load[0] / load[1], "x"),
                Row(f"{what}: process and load, tables", load[0] / 1e6, "million"),
            ]
    return rows


def _count(device: Counting, exporter: str, runs: tuple[Run, ...], x: torch.Tensor, repeats: int) -> list[int]:
    for result in run_on(device, exporter, runs, (x,), repeats):
        if isinstance(result, RuntimeFailure):
            raise ToolchainError(f"{exporter} on {device.name}: {result}")
    return device.counts[-len(runs) :]


if __name__ == "__main__":
    main()
