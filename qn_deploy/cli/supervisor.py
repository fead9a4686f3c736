"""The installed command: a small parent that watches over the process which does the work.

What a foreign file makes torch, onnxruntime or ExecuTorch do may end in a signal, take all memory or not end. The work is done in a child
with limits, and whatever becomes of it, the command ends with one sentence and one of three exit codes: 0 fine, 1 a check failed, 2 usage
or input. The child is forked before anything heavy is imported, so this costs a millisecond.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

import click

from qn_deploy.cli import UserError, main

MEMORY, SECONDS, TRACEBACK = "QN_DEPLOY_MEMORY_GB", "QN_DEPLOY_SECONDS", "QN_DEPLOY_TRACEBACK"  # environment variables
DEFAULT_SECONDS = 24 * 3600.0
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def run() -> None:
    """Runs the command line in a child, and ends as it does."""
    try:
        memory, seconds = _limit(MEMORY, _installed_gb()), _limit(SECONDS, DEFAULT_SECONDS)
    except UserError as error:
        error.show()
        sys.exit(error.exit_code)
    parent, child = os.getpid(), os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before that
            os._exit(2)
        limit = min(int(memory * 1e9), resource.getrlimit(resource.RLIMIT_DATA)[1] % (1 << 64))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        sys.exit(execute())
    sys.exit(_watch(child, memory, seconds))


def execute(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line in this process.

    Args:
        arguments: the words after the command's name; None: those of this process.

    Returns:
        The exit code: 0 fine, 1 a check failed, 2 usage or input. What went wrong was told in one line.
    """
    try:
        code = main.main(arguments, prog_name="qn-deploy", standalone_mode=False)
        sys.stdout.flush()
        return code if code in (0, 1) else 0
    except click.ClickException as error:
        error.show()
    except click.Abort:
        click.echo("Error: interrupted", err=True)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except MemoryError:
        _tell(f"the memory is not enough; {MEMORY} sets how much may be taken")
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        words = " ".join(str(error).split())[:300]
        _tell(f"{type(error).__name__}: {words}; a bug of qn-deploy, or a file made to find one. {TRACEBACK}=1 shows where")
    return 2


def _watch(child: int, memory: float, seconds: float) -> int:
    """Waits for the child, and says in one line how it ended if it did not by itself."""
    timed_out = False

    def end(number: int, _: FrameType | None) -> None:
        nonlocal timed_out
        timed_out = number == signal.SIGALRM
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL if timed_out else number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        code = os.WEXITSTATUS(status)
        return code if code in (0, 1, 2) else 2
    ended = signal.Signals(os.WTERMSIG(status))
    if timed_out:
        _tell(f"it did not end within {seconds:g} s, and was stopped; {SECONDS} sets another limit")
    elif ended in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        _tell("interrupted")
    else:
        cause = "the file makes a library crash, or takes more memory than there is"
        _tell(f"it ended with {ended.name}: {cause} (limit {memory:.3g} GB, {MEMORY}). Nothing was written")
    return 2


def _limit(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0
    if not 0 < value < 1e9:
        raise UserError(f"{name} is {text!r}; expected a number above 0")
    return value


def _installed_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _tell(words: str) -> None:
    click.echo(f"Error: {words}", err=True)
