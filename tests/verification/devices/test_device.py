from __future__ import annotations

from pathlib import Path

import pytest

from qn_deploy.errors import ToolchainError
from qn_deploy.verification.devices.device import Ended, call, last_line, loaded


@pytest.mark.parametrize(
    ("script", "code", "ending"),
    [
        ("exit 0", 0, "ended with exit code 0"),
        ("exit 7", 7, "ended with exit code 7"),
        ("kill -SEGV $$", 139, "crashed with SIGSEGV"),
        ("kill -ILL $$", 132, "crashed with SIGILL"),
        ("sleep 9", 124, "did not end in time"),
        ("exit 139", 139, "crashed with SIGSEGV"),  # as the shell of a device tells it
        ("exit 255", 255, "ended with exit code 255"),
    ],
)
def test_how_a_command_ended(script: str, code: int, ending: str) -> None:
    ended = call(("sh", "-c", script), timeout_s=1)
    assert (ended.code, ended.ending) == (code, ending)


def test_what_a_command_printed(tmp_path: Path) -> None:
    ended = call(("sh", "-c", "printf 'x\\377'; pwd >&2; cat"), folder=tmp_path)  # cat: nothing comes from our standard input
    assert ended == Ended(0, "x\ufffd", f"{tmp_path}\n")
    with pytest.raises(ToolchainError, match="can't run no-such-command: No such file"):
        call(("no-such-command",))


def test_the_last_line() -> None:
    assert last_line("a\n b \n\n") == "b"
    assert last_line("") == last_line(" \n") == ""


def test_a_program_runs_with_the_bundles_own_loader() -> None:
    assert loaded("b", "p") == ("b/lib/ld-linux-aarch64.so.1", "--library-path", "b/lib", "b/bin/p")
