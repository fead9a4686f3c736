"""What an exporter brings for devices: a program that runs its files there, built from the arm64 wheel of its runtime."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.processes import call


@dataclass(frozen=True)
class Runner:
    """The attribute `runner` of an exporter whose programs run on devices; an exporter without it runs on this machine only.

    The program takes PROGRAM INPUTS OUTPUTS [OPTION...], reads and writes tensor files (verification/devices/tensors.py describes them),
    and prints one line of JSON, {"load_ms": 1.5, "run_ms": [0.8]}. If the runtime refuses, it ends with exit code 1 and a last line of
    standard error that says why.

    Attributes:
        program: its file name in the bundle's bin folder.
        package: the distribution whose wheel holds the runtime.
        wheels: sha256 of the aarch64 wheel for CPython 3.11 by version.
        sources: folder of the sources that `build` compiles.
        build: (compiler, unpacked wheel, bundle folder): puts the program into bin and libraries into lib.
        options: what the program is given always.
        plain: the option that turns rewriting of the graph off; empty if there is none.
    """

    program: str
    package: str
    wheels: dict[str, str]
    sources: Path
    build: Callable[[tuple[str, ...], Path, Path], None]
    options: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    @property
    def version(self) -> str:
        """The version of the runtime, on the device as on this machine.

        Raises:
            ToolchainError: it is not installed, or no wheel of this version is pinned.
        """
        try:
            installed = version(self.package)
        except PackageNotFoundError:
            raise ToolchainError(f"{self.package} is not installed, and devices run the installed version; {self._install}") from None
        if installed not in self.wheels:
            raise ToolchainError(
                f"{self.package} {installed} is installed, and devices take the same version by its sha256; known are "
                f"{', '.join(self.wheels)}. {self._install.capitalize()}"
            )
        return installed

    @property
    def _install(self) -> str:
        return "install one that this Python takes: " + " or ".join(f"pip install {self.package}=={known}" for known in self.wheels)


def find_runners() -> dict[str, Runner]:
    """The runners of the installed exporters by the exporter's name."""
    runners = {name: getattr(exporter, "runner", None) for name, exporter in find_exporters().items()}
    return {name: runner for name, runner in runners.items() if isinstance(runner, Runner)}


def compile_for_device(command: tuple[str, ...]) -> None:
    """Runs a compiler.

    Raises:
        ToolchainError: it fails; with the first error that it printed.
    """
    ended = call(command)
    if ended.code:
        errors = [line for line in ended.err.splitlines() if re.search(r"error|cannot find|undefined|not found", line)]
        reason = (errors or ended.err.splitlines() or ["no message"])[0].strip()
        raise ToolchainError(f"compiling for 64-bit ARM {ended.ending}: {reason}; the command was: {shlex.join(command)}")
