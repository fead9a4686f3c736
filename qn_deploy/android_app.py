"""The demo app on a phone or an emulator, through adb: installed, made to check its models, and asked what it found."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qn_deploy.errors import InputError, ToolchainError
from qn_deploy.exporting.manifest import MANIFEST
from qn_deploy.files import read_bytes
from qn_deploy.processes import call, last_line
from qn_deploy.verification.judge import Check

PACKAGE = "qndeploy.demo"
TAG, DONE = "QN_PARITY", "DONE "  # as the library's QnCheck writes its log
PATIENCE_S, PAUSE_S = 600.0, 0.5  # for all checks of the app, and between two looks at its log
ADB_S = 600.0  # for one command


@dataclass(frozen=True)
class AndroidApp:
    """The app on the device of this serial number; None: the only one.

    Attributes:
        serial: as `adb devices` lists it.
    """

    serial: str | None = None

    def install(self, apk: Path) -> None:
        """Installs an APK, or brings the app up to date.

        Raises:
            InputError: there is no such file.
            ToolchainError: there is no adb or no device, or it refuses.
        """
        if not apk.is_file():
            raise InputError(f"there is no {apk}; build one: make apk AARS=FOLDER, or ./gradlew assembleDebug in android_demo")
        self._adb("install", "-r", str(apk))

    def check(self, build: Path, name: str, progress: Callable[[str], None] = lambda stage: None) -> tuple[Check, ...]:
        """Starts the app, lets it check all its models, and reads what it found for one of them.

        Args:
            build: the folder that was bundled.
            name: what the model is called in the app.
            progress: called with the name of each stage.

        Returns:
            A check for each program and each pair of runtimes, as `verify` reports them.

        Raises:
            InputError: the app holds no such model, or another export of it.
            ToolchainError: there is no adb, no device or no app on it, or the app did not end its check.
        """
        manifest = hashlib.sha256(read_bytes(build / MANIFEST)).hexdigest()
        progress("starting the app")
        self._adb("logcat", "-c")
        self._adb("shell", "am", "force-stop", PACKAGE)
        started = self._adb("shell", "am", "start", "-n", f"{PACKAGE}/.MainActivity", "--ez", "check", "true")
        if "Error" in started:
            raise ToolchainError(
                f"the app does not start: {last_line(started)}; install it first: --install build/qn-deploy-demo-arm64-v8a.apk"
            )
        progress("waiting for its verdict")
        rows = [row for row in self._rows() if row["model"] == name]
        if not rows:
            raise InputError(
                f"the app holds no model {name}; bundle it: qn-deploy android {build} --name {name}, build the app and install it"
            )
        if any(row.get("manifest_sha256", manifest) != manifest for row in rows):
            raise InputError(f"the app holds another export of {name} than {build}; bundle this one, build the app and install it")
        return tuple(self._check(row) for row in rows)

    def _rows(self) -> list[dict[str, Any]]:
        """The facts in the lines of the log, once the last line is there."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            lines = self._adb("logcat", "-d", "-v", "raw", "-s", f"{TAG}:I").splitlines()
            if any(line.startswith(DONE) for line in lines):
                verdicts = [line.partition(" ")[2] for line in lines if line.startswith(("PASS {", "FAIL {"))]
                try:
                    return [dict(json.loads(verdict)) for verdict in verdicts]
                except ValueError as error:
                    raise ToolchainError(
                        f"the app's log is cut off ({error}); make room for it: adb logcat -G 16M, and check again"
                    ) from None
            time.sleep(PAUSE_S)
        raise ToolchainError(f"the app did not end its check within {PATIENCE_S:g} s; see adb logcat")

    def _check(self, row: dict[str, Any]) -> Check:
        """A row of the app as a line of the report: rung 4 compares two runtimes, rung 3 is one on its own."""
        twins = "," in row["file"]
        files = row["file"].replace(",", " to ") or row["model"]
        figures = f"; p50 {row['p50_us'] / 1000:.2f} ms, load {row['load_us'] / 1000:.1f} ms" if "p50_us" in row else ""
        return Check(4 if twins else 3, f"{files} in the app, {row['runtime']}", row["found"] + figures, row["limit"], row["passed"])

    def _adb(self, *words: str) -> str:
        command = ("adb", *(("-s", self.serial) if self.serial else ()), *words)
        ended = call(command, ADB_S)
        if ended.code:
            said = last_line(ended.err) or last_line(ended.out) or ended.ending
            raise ToolchainError(f"{' '.join(command[:4])}: {said}; `adb devices` lists what is connected")
        return ended.out
