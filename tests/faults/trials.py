"""How faults are made: bytes changed by a seed, and work in a process of its own that may be killed or take too much."""

from __future__ import annotations

import copy
import io
import json
import mmap
import os
import random
import resource
import signal
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS, BYTES = 10, 2 << 30  # what one case may take
REFUSED, SAME = "refused", "accepted, and the same"
CRASHED = " in a runtime, which verify gives a process of its own"
STRANGE = (None, True, 0, -1, 3, 1 << 62, 1.5, 1e300, "", "x", "../x", "a\0b", [], {}, [0], "aten.relu.default")


_in_runtime = mmap.mmap(-1, 1)  # shared with children: 1 while a runtime runs in one of them


@contextmanager
def runtime() -> Iterator[None]:
    """What crashes in this block is a runtime, and no code of ours."""
    _in_runtime[0] = 1
    try:
        yield
    finally:
        _in_runtime[0] = 0


def count(full: int, short: int) -> int:
    """How many cases: FAULTS=full asks for as many as the bars, an hour or two; FAULTS=2000 for at most so many; else a short run."""
    asked = os.environ.get("FAULTS", "")
    return full if asked == "full" else min(full, int(asked)) if asked else short


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes with a few of them changed, cut, doubled, moved or overwritten."""
    changed, kind = bytearray(data), draw.randrange(6)
    at = draw.randrange(len(data))
    length = draw.choice((1, 2, 4, 8, 64, 1024))
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 1:
        changed[at : at + length] = draw.choice((b"\0", b"\xff", b"\x7f")) * length
    elif kind == 2:
        del changed[at : None if draw.random() < 0.3 else at + length]
    elif kind == 3:
        changed[at:at] = changed[at : at + length]
    elif kind == 4:
        to = draw.randrange(len(data))
        changed[to : to + length] = data[at : at + length]
    else:
        changed[at : at + 8] = draw.choice((1 << 63, 1 << 31, 2**64 - 1, 1 << 40, 0)).to_bytes(8, "little")
    return bytes(changed)


def tally(cases: Iterable[Callable[[], str]], chunk: int = 200) -> Counter[str]:
    """What became of the cases: what each returned, or the signal or exception that it ended with. A child runs many of them."""
    found: Counter[str] = Counter()
    todo = list(cases)
    while todo:
        done, ending = _in_child(todo[:chunk])
        found.update(done)
        if ending and len(done) < len(todo[:chunk]):
            found[ending] += 1
            done.append(ending)
        todo = todo[len(done) :]
    return found


def _in_child(cases: list[Callable[[], str]]) -> tuple[list[str], str]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        own = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (own + BYTES, own + BYTES))
        for case in cases:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)  # SIGALRM ends the child
            try:
                word = case()
            except BaseException as error:
                traceback.print_exc()
                word = f"traceback: {type(error).__name__}"
            os.write(writer, word.encode() + b"\n")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        words = pipe.read().splitlines()
    status = os.waitpid(child, 0)[1]
    crashed, _in_runtime[0] = CRASHED if _in_runtime[0] else "", 0
    return words, signal.Signals(os.WTERMSIG(status)).name + crashed if os.WIFSIGNALED(status) else ""


def killed_after(seconds: float, work: Callable[[], object]) -> None:
    """Does the work in a child, which is killed after so many seconds if it has not ended by then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        signal.sigtimedwait({signal.SIGCHLD}, seconds)
        os.kill(child, signal.SIGKILL)
    finally:
        os.waitpid(child, 0)
        signal.sigtimedwait({signal.SIGCHLD}, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def replace_leaf(tree: Any, draw: random.Random) -> None:
    """Replaces, removes or doubles a value somewhere in JSON."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = draw.choice(keys)
        if not isinstance(tree[key], dict | list) or not tree[key] or draw.random() < 0.1:
            break
        tree = tree[key]
    kind = draw.randrange(4)
    if kind == 0:
        del tree[key]
    elif kind == 1 and isinstance(tree[key], int):
        tree[key] += draw.choice((-1, 1, 7, 1 << 20, -(1 << 40), 1 << 62))
    else:
        tree[key] = copy.deepcopy(draw.choice((*STRANGE, tree[key])))


def forged_zip(data: bytes, draw: random.Random) -> bytes:
    """A zip with one member mutated, its CRC right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = [name for name in members if members[name]]
    said = [name for name in names if name.endswith(".json")]
    name = draw.choice(said if said and draw.random() < 0.6 else names)
    if name in said and draw.random() < 0.7:
        tree = json.loads(members[name])
        replace_leaf(tree, draw)
        members[name] = json.dumps(tree).encode()
    else:
        members[name] = mutated(members[name], draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def attack(
    capsys: pytest.CaptureFixture[str], what: str, cases: list[Callable[[], str]], allowed: tuple[str, ...] = (REFUSED, SAME)
) -> Counter[str]:
    found = tally(cases)
    with capsys.disabled():
        print(f"\n{what}: {found.total():,} cases, {dict(found)}")
    wrong = [word for word in found if word not in allowed and not word.startswith("accepted") and not word.endswith(CRASHED)]
    assert not wrong, found
    return found
