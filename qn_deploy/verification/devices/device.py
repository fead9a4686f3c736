"""What a device is: a folder of files and a way to run a program in it."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qn_deploy.errors import ToolchainError

TIMED_OUT = 124  # as timeout(1) ends


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code as a shell gives it (128 + signal after a crash), and what it printed."""

    code: int
    out: str
    err: str

    @property
    def ending(self) -> str:
        """How it ended, in words."""
        if self.code == TIMED_OUT:
            return "did not end in time"
        if self.code > 128:
            try:
                return f"crashed with {signal.Signals(self.code - 128).name}"
            except ValueError:
                pass
        return f"ended with exit code {self.code}"


class Device(Protocol):
    """A machine that runs the programs of a bundle. Paths on it are relative to its working folder, and have `/` between names.

    Attributes:
        name: as the user gave it: qemu:cortex-a76.
        emulated: its times say nothing about speed.
    """

    name: str
    emulated: bool

    def has(self, path: str) -> bool:
        """True if the device has this file or folder."""

    def put(self, source: Path, path: str) -> None:
        """Copies a file or folder to the device, to a path that is not there yet."""

    def run(self, bundle: str, program: str, arguments: tuple[str, ...], timeout_s: float) -> Ended:
        """Runs `bundle`/bin/`program` with the bundle's own loader and libraries, in the working folder."""

    def get(self, path: str, target: Path) -> None:
        """Copies a folder from the device into a folder that is not there yet."""

    def remove(self, path: str) -> None:
        """Removes a folder of the device."""


def call(command: tuple[str, ...], timeout_s: float | None = None, folder: Path | None = None) -> Ended:
    """Runs a command of this machine, in a folder if one is given.

    Raises:
        ToolchainError: there is no such command.
    """
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, cwd=folder)
    except subprocess.TimeoutExpired:
        return Ended(TIMED_OUT, "", "")
    except OSError as error:
        raise ToolchainError(f"can't run {command[0]}: {error.strerror}") from None
    out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
    return Ended(done.returncode if done.returncode >= 0 else 128 - done.returncode, out, err)


def loaded(bundle: str, program: str) -> tuple[str, ...]:
    """The command that runs a program of a bundle with the bundle's loader, whatever the device itself has."""
    return (f"{bundle}/lib/ld-linux-aarch64.so.1", "--library-path", f"{bundle}/lib", f"{bundle}/bin/{program}")


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return text.strip().splitlines()[-1].strip() if text.strip() else ""
