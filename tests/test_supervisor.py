"""The installed command as a process: three exit codes, one sentence, whatever the work in its child comes to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from qn_deploy.cli import main, supervisor
from qn_deploy.cli.supervisor import execute

WORK = {
    "fine": "0",
    "failed": "1",
    "crash": "os.kill(os.getpid(), signal.SIGSEGV)",
    "abort": "os.abort()",
    "strange": "os._exit(77)",
    "endless": "time.sleep(600)",
    "greedy": "[bytearray(1 << 30) for _ in range(64)]",
    "raises": "raise_(KeyError('one\\ntwo'))",
}
SCRIPT = """
import os, signal, sys, time
from qn_deploy.cli import supervisor
def raise_(error): raise error
class Command:
    def main(self, *_, **__): return {work}
supervisor.main = Command()
supervisor.run()
"""


def run(work: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(work=WORK[work])],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=60,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("work", "environment", "code", "words"),
    [
        ("fine", {}, 0, ""),
        ("failed", {}, 1, ""),
        ("strange", {}, 2, ""),
        ("crash", {}, 2, "Error: it ended with SIGSEGV: the file makes a library crash, or takes more memory than there is"),
        ("abort", {}, 2, "Error: it ended with SIGABRT"),
        ("endless", {"QN_DEPLOY_SECONDS": "0.3"}, 2, "Error: it did not end within 0.3 s, and was stopped; QN_DEPLOY_SECONDS sets"),
        ("greedy", {"QN_DEPLOY_MEMORY_GB": "1"}, 2, "Error: the memory is not enough; QN_DEPLOY_MEMORY_GB sets how much may be taken"),
        ("raises", {}, 2, r"Error: KeyError: 'one\ntwo'; a bug of qn-deploy, or a file made to find one. QN_DEPLOY_TRACEBACK=1"),
        ("fine", {"QN_DEPLOY_SECONDS": "soon"}, 2, "Error: QN_DEPLOY_SECONDS is 'soon'; expected a number above 0"),
        ("fine", {"QN_DEPLOY_MEMORY_GB": "-1"}, 2, "Error: QN_DEPLOY_MEMORY_GB is '-1'; expected a number above 0"),
    ],
)
def test_it_ends_with_a_sentence_and_one_of_three_codes(work: str, environment: dict[str, str], code: int, words: str) -> None:
    found, told = run(work, **environment)
    assert (found, told.startswith(words), told.count("\n")) == (code, True, 1 if words else 0), told


def test_the_traceback_is_there_for_who_asks() -> None:
    assert "Traceback" in run("raises", QN_DEPLOY_TRACEBACK="1")[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_work_ends_with_the_command(tmp_path: Path, number: signal.Signals) -> None:
    work = f"(open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())), time.sleep(600))"
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT.format(work=work)], stderr=subprocess.PIPE)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    parent.send_signal(number)
    told = parent.communicate(timeout=30)[1]
    assert parent.returncode == (2 if number == signal.SIGTERM else -9)
    assert told == (b"Error: interrupted\n" if number == signal.SIGTERM else b"")
    end = time.monotonic() + 20
    while Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("error", [MemoryError(), click.Abort(), BrokenPipeError(), RecursionError("too deep")])
def test_every_error_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(supervisor, "main", type("Main", (), {"main": staticmethod(fail)}))
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    assert execute([]) == 2


def test_plain_use_goes_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert supervisor.main is main
    assert execute(["--version"]) == 0
    assert capsys.readouterr().out.startswith("qn-deploy, version ")
    assert execute(["nonsense"]) == 2
    assert execute(["inspect", "nul\0byte"]) == 2
    assert "there is a NUL byte in the name" in capsys.readouterr().err
