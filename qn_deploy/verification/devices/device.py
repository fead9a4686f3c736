"""What a device is: a folder of files and a way to run a program in it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from qn_deploy.processes import TIMED_OUT, Ended, call, last_line

__all__ = ["TIMED_OUT", "Device", "Ended", "call", "last_line", "loaded"]


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


def loaded(bundle: str, program: str) -> tuple[str, ...]:
    """The command that runs a program of a bundle with the bundle's loader, whatever the device itself has."""
    return (f"{bundle}/lib/ld-linux-aarch64.so.1", "--library-path", f"{bundle}/lib", f"{bundle}/bin/{program}")
