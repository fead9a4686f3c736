"""kill -9, a full disk and two at once, while a build folder is replaced: the old build whole, or the new one, and never another thing."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from qn_deploy.errors import InputError
from qn_deploy.exporting.folder import replacing
from qn_deploy.files import write_atomic
from tests.faults.trials import count, killed_after

pytestmark = [pytest.mark.slow, pytest.mark.faults]
SIZES = (0, 100, 5_000, 200_000)


def build_of(version: int) -> dict[str, bytes]:
    """The files of one build; another version has others."""
    return {f"file{index}{version if index else ''}": bytes([version]) * size for index, size in enumerate(SIZES, 0)}


def save(folder: Path, version: int) -> None:
    with replacing(folder, lambda place: {path.name for path in place.iterdir() if path.name != "mine"}) as write:
        write(build_of(version))


def version_of(folder: Path, tried: set[int]) -> int:
    """Which of the tried builds the folder holds, whole and with the user's file."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found.pop("mine") == b"precious"
    (whole,) = [version for version in tried if found == build_of(version)]
    return whole


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "build", 1)
    (tmp_path / "build/mine").write_bytes(b"precious")
    return tmp_path / "build"


def test_kill_9(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, found, now = random.Random(16), Counter[str](), 1
    trials, start = count(200, 200), time.perf_counter()
    for _ in range(5):
        killed_after(60, lambda: save(folder, 1))
    longest = 2 * (time.perf_counter() - start) / 5
    for trial in range(trials):
        new = now % 250 + 1
        killed_after(draw.uniform(0, longest), lambda new=new: save(folder, new))
        held = version_of(folder, {now, new})
        found["old" if held == now else "new"] += 1
        now = held
        if trial % 10 == 9:
            save(folder, now)
            assert sorted(os.listdir(folder.parent)) == ["build"]
    with capsys.disabled():
        print(f"\nkill -9 while a build is replaced: {trials} trials, {dict(found)}, none broken")
    assert found["old"] and found["new"]


def test_a_full_disk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, found, now = random.Random(16), Counter[str](), 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for _ in range(count(100, 100)):
        new = now % 250 + 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (draw.randrange(2 * max(SIZES)), before[1]))
        try:
            save(folder, new)
            now, word = new, "new"
        except InputError:
            word = "refused, old"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        found[word] += 1
        assert version_of(folder, {now}) == now
        assert os.listdir(folder.parent) == ["build"]
    with capsys.disabled():
        print(f"\nfull disk while a build is replaced: {found.total()} trials, {dict(found)}, none broken")
    assert len(found) == 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, on which an old build and a new one have room, but for what a filler takes. Only root can mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system")
def test_a_full_file_system(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, found, now = random.Random(17), Counter[str](), 1
    folder = disk / "build"
    save(folder, 1)
    (folder / "mine").write_bytes(b"precious")
    for _ in range(count(100, 100)):
        new = now % 250 + 1
        filler = disk / "filler"
        filler.write_bytes(bytes(draw.randrange(500_000, 780_000)))
        try:
            save(folder, new)
            now, word = new, "new"
        except InputError:
            word = "refused, old"
        found[word] += 1
        assert version_of(folder, {now}) == now
        assert sorted(os.listdir(disk)) == ["build", "filler"]
        filler.unlink()
    with capsys.disabled():
        print(f"\nfull file system while a build is replaced: {found.total()} trials, {dict(found)}, none broken")
    assert len(found) == 2


def test_two_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, found = random.Random(16), Counter[int]()
    for _ in range(count(100, 100)):
        children = []
        for version in (2, 3):
            late = draw.uniform(0, 0.03)
            if not (child := os.fork()):
                time.sleep(late)
                save(folder, version)
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
        found[version_of(folder, {2, 3})] += 1
        assert os.listdir(folder.parent) == ["build"]
    with capsys.disabled():
        print(f"\ntwo exports at once: {found.total()} trials, {dict(found)}, none mixed")


def test_kill_9_while_one_file_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, target, now = random.Random(16), tmp_path / "model.pt", 0
    write_atomic(target, bytes(300_000))
    trials = count(200, 200)
    for trial in range(trials):
        new = trial % 255 + 1
        killed_after(draw.uniform(0, 0.004), lambda new=new: write_atomic(target, bytes([new]) * 300_000))
        data = target.read_bytes()
        assert data in (bytes([now]) * 300_000, bytes([new]) * 300_000)
        now = data[0]
    write_atomic(target, b"last")
    assert os.listdir(tmp_path) == ["model.pt"]
    with capsys.disabled():
        print(f"\nkill -9 while a file is saved: {trials} trials, none broken")
