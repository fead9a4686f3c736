"""Devices behind a shell: a phone or Android emulator through adb, a board through ssh."""

from __future__ import annotations

import shlex
from pathlib import Path

from qn_deploy.errors import ToolchainError
from qn_deploy.verification.devices.device import Ended, call, last_line, loaded

MACHINE = "aarch64"


class _Shell:
    """What adb and ssh have in common: a command line for the device's shell, and a copying program."""

    emulated = False

    def __init__(self, name: str, shell: tuple[str, ...], folder: str) -> None:
        self.name, self._shell, self._folder = name, shell, folder
        machine = self._call("uname -m").out.strip()
        if machine != MACHINE:
            raise ToolchainError(f"{name} is {machine or 'no machine that tells its kind'}; expected {MACHINE}, which the bundle is for")
        self._call(shlex.join(("mkdir", "-p", folder)))

    def has(self, path: str) -> bool:
        """True if the device has it."""
        return self._call(shlex.join(("test", "-e", self._at(path)))).code == 0

    def run(self, bundle: str, program: str, arguments: tuple[str, ...], timeout_s: float) -> Ended:
        """Runs it in the working folder; timeout(1) of the device ends it."""
        command = shlex.join(("timeout", f"{timeout_s:g}", *loaded(bundle, program), *arguments))
        return self._call(f"cd {shlex.quote(self._folder)} && {command}")

    def remove(self, path: str) -> None:
        """Removes it."""
        self._call(shlex.join(("rm", "-rf", self._at(path))))

    def put(self, source: Path, path: str) -> None:
        """Copies it under another name first: what is there is whole."""
        part = self._at(f"{path}.part")
        self._call(shlex.join(("rm", "-rf", part)))
        self._copy(self._put(source, part))
        self._call(shlex.join(("mv", part, self._at(path))))

    def get(self, path: str, target: Path) -> None:
        """Copies it."""
        self._copy(self._get(self._at(path), target))

    def _at(self, path: str) -> str:
        return f"{self._folder}/{path}"

    def _call(self, line: str) -> Ended:
        return self._checked(call((*self._shell, line)))

    def _copy(self, command: tuple[str, ...]) -> None:
        ended = call(command)
        if ended.code:
            raise ToolchainError(f"{self.name}: {shlex.join(command)} {ended.ending}: {last_line(ended.err) or last_line(ended.out)}")

    def _put(self, source: Path, path: str) -> tuple[str, ...]:
        raise NotImplementedError

    def _get(self, path: str, target: Path) -> tuple[str, ...]:
        raise NotImplementedError

    def _checked(self, ended: Ended) -> Ended:
        raise NotImplementedError


class Adb(_Shell):
    """An Android device in developer mode. Files go to /data/local/tmp, from where its shell may run them."""

    def __init__(self, serial: str | None) -> None:
        """Of this serial number; None: the only one.

        Raises:
            ToolchainError: there is no adb, no such device, or it is not 64-bit ARM.
        """
        self._adb = ("adb", *(("-s", serial) if serial else ()))
        super().__init__(f"adb:{serial}" if serial else "adb", (*self._adb, "shell"), "/data/local/tmp/qn-deploy")

    def _put(self, source: Path, path: str) -> tuple[str, ...]:
        return (*self._adb, "push", str(source), path)

    def _get(self, path: str, target: Path) -> tuple[str, ...]:
        return (*self._adb, "pull", path, str(target))

    def _checked(self, ended: Ended) -> Ended:
        # `adb shell` ends as the command on the device does; adb's own failures are 1, and begin so.
        if ended.code == 1 and ended.err.startswith(("adb: ", "error: ")):
            raise ToolchainError(f"{self.name}: {ended.err.strip().splitlines()[0]}; `adb devices` lists what is connected")
        return ended


class Ssh(_Shell):
    """A Linux board. Files go below the home folder; a key has to be there, for nobody is asked for a password."""

    def __init__(self, host: str) -> None:
        """Of this host, as ssh knows it.

        Raises:
            ToolchainError: there is no ssh, it can't reach the host, or that is not 64-bit ARM.
        """
        self._host = host
        super().__init__(f"ssh:{host}", ("ssh", "-o", "BatchMode=yes", "--", host), ".cache/qn-deploy/device")

    def _put(self, source: Path, path: str) -> tuple[str, ...]:
        return ("scp", "-B", "-q", "-r", str(source), f"{self._host}:{path}")

    def _get(self, path: str, target: Path) -> tuple[str, ...]:
        return ("scp", "-B", "-q", "-r", f"{self._host}:{path}", str(target))

    def _checked(self, ended: Ended) -> Ended:
        if ended.code == 255:  # ssh's own failures
            raise ToolchainError(f"{self.name}: {last_line(ended.err)}; try: ssh {shlex.quote(self._host)} true")
        return ended
