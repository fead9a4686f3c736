"""Commands of this machine: how one is run, and how it ended."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

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


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return text.strip().splitlines()[-1].strip() if text.strip() else ""
