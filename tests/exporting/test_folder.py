from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from qn_deploy.errors import InputError
from qn_deploy.exporting import folder as room
from qn_deploy.exporting.folder import replacing

OLD, NEW = {"a": b"1", "b": b"1"}, {"a": b"2", "c": b"2"}


def save(path: Path, files: dict[str, bytes], own: frozenset[str] = frozenset(OLD)) -> None:
    with replacing(path, lambda _: set(own)) as write:
        write(files)


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir() if entry.is_file()}


def test_a_build_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    save(tmp_path / "new/build", OLD)
    assert contents(tmp_path / "new/build") == OLD
    (tmp_path / "new/build").chmod(0o750)
    save(tmp_path / "new/build", NEW)
    assert contents(tmp_path / "new/build") == NEW
    assert (tmp_path / "new/build").stat().st_mode & 0o777 == 0o750
    assert os.listdir(tmp_path / "new") == ["build"]


def test_what_the_user_put_there_is_carried_over(tmp_path: Path) -> None:
    build = tmp_path / "build"
    save(build, OLD)
    (build / "notes.txt").write_text("precious")
    (build / "link").symlink_to("notes.txt")
    (build / "folder/deep").mkdir(parents=True)
    (build / "folder/deep/file").write_text("precious")
    inode = (build / "notes.txt").stat().st_ino
    save(build, NEW)
    assert contents(build) == {**NEW, "notes.txt": b"precious", "link": b"precious"}
    assert os.readlink(build / "link") == "notes.txt"
    assert (build / "folder/deep/file").read_text() == "precious"
    assert (build / "notes.txt").stat().st_ino == inode


def test_a_folder_of_the_users_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "build/a").mkdir(parents=True)
    with pytest.raises(InputError, match="build/a is a folder, in place of a file of the build"):
        save(tmp_path / "build", NEW)
    assert os.listdir(tmp_path / "build") == ["a"] and os.listdir(tmp_path) == ["build"]


def test_a_failure_leaves_the_old_build_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "build", OLD)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="build can't be made: No space left on device"):
        save(tmp_path / "build", NEW)
    assert contents(tmp_path / "build") == OLD and os.listdir(tmp_path) == ["build"]


def test_what_a_killed_export_left_is_swept(tmp_path: Path) -> None:
    save(tmp_path / "build", OLD)
    stale = tmp_path / ".build.qn-deploy-new"
    (stale / "folder").mkdir(parents=True)
    (stale / "a").write_text("half")
    save(tmp_path / "build", NEW)
    assert contents(tmp_path / "build") == NEW and os.listdir(tmp_path) == ["build"]


@pytest.mark.parametrize("fails", [0, 1, 2, 3])
def test_where_names_cannot_be_swapped_three_renames_do_it_and_a_kill_in_between_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    class Killed(BaseException):
        pass

    save(tmp_path / "build", OLD)
    (tmp_path / "build/mine").write_text("precious")
    monkeypatch.setattr(room.ctypes, "CDLL", lambda *_, **__: object())  # without renameat2
    rename, calls = Path.rename, []

    def kill(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == fails:
            raise Killed
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", kill)
    if fails:
        with pytest.raises(Killed):
            save(tmp_path / "build", NEW)
        monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path / "build", NEW)
    assert contents(tmp_path / "build") == {**NEW, "mine": b"precious"} and os.listdir(tmp_path) == ["build"]


def test_a_second_export_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    build, told, second = tmp_path / "build", [], threading.Event()

    def late() -> None:
        with replacing(build, lambda _: set(OLD), told.append) as write:
            write(NEW)
        second.set()

    with replacing(build, lambda _: set()) as write:
        write(OLD)
        thread = threading.Thread(target=late)
        thread.start()
        assert not second.wait(0.3)
    thread.join()
    assert told == [f"waiting for another export into {build}"]
    assert contents(build) == NEW and os.listdir(tmp_path) == ["build"]


def test_a_place_that_cannot_be_swapped_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here/deep")
    for path in (Path("."), tmp_path / "here"):
        with pytest.raises(InputError, match="is the working folder, or holds it"):
            save(path, NEW)
    with pytest.raises(InputError, match="is the root of a file system"):
        save(Path("/proc"), NEW)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/build", Path("nul\0byte")):
        with pytest.raises(InputError, match="can't be made"):
            save(path, NEW)


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    save(tmp_path / "real", OLD)
    (tmp_path / "build").symlink_to("real")
    save(tmp_path / "build", NEW)
    assert (tmp_path / "build").is_symlink() and contents(tmp_path / "real") == NEW


def test_a_temporary_folder_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".build.qn-deploy-new").symlink_to("elsewhere")
    with pytest.raises(InputError, match="can't be made"):
        save(tmp_path / "build", NEW)
    assert not list((tmp_path / "elsewhere").iterdir())
