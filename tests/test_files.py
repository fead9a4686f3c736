from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from qn_deploy.errors import InputError
from qn_deploy.files import read_bytes, write_atomic


def test_written_bytes_come_back(tmp_path: Path) -> None:
    write_atomic(tmp_path / "model.pt", b"one")
    write_atomic(str(tmp_path / "model.pt"), b"two")
    assert read_bytes(tmp_path / "model.pt") == b"two"
    assert os.listdir(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    write_atomic(tmp_path / "model.pt", b"good")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(InputError, match=r"cannot write .*model\.pt: No space left on device"):
        write_atomic(tmp_path / "model.pt", b"new")
    assert os.listdir(tmp_path) == ["model.pt"]
    assert read_bytes(tmp_path / "model.pt") == b"good"


def test_an_interrupt_removes_the_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "model.pt", b"new")
    assert os.listdir(tmp_path) == []


def test_the_temporary_file_stands_beside_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[tuple[Path, Path]] = []
    replace = os.replace

    def record(source: Path, target: Path) -> None:
        moves.append((Path(source), Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    write_atomic(tmp_path / "model.pt", b"data")
    ((source, target),) = moves
    assert source.parent == target.parent == tmp_path.resolve()  # rename is atomic only within one file system


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*absent/model\.pt: No such file or directory"):
        write_atomic(tmp_path / "absent" / "model.pt", b"data")


def test_a_folder_that_takes_no_files_is_named() -> None:
    with pytest.raises(InputError, match=r"cannot write /proc/self/model\.pt: "):  # root, too, may not write there
        write_atomic("/proc/self/model.pt", b"data")


def test_a_folder_that_refuses_new_files_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"cannot write .*model\.pt: Permission denied"):
        write_atomic(tmp_path / "model.pt", b"data")


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        write_atomic(tmp_path / "model.pt", b"data")
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.pt").write_bytes(b"old")
    (tmp_path / "link.pt").symlink_to(tmp_path / "real.pt")
    write_atomic(tmp_path / "link.pt", b"new")
    assert (tmp_path / "link.pt").is_symlink()
    assert (tmp_path / "real.pt").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.pt", "No such file or directory"), (".", "Is a directory"), ("nul\0byte.pt", "null")]
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"cannot read .*: .*{reason}"):
        read_bytes(tmp_path / name)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match=f"cannot read {path}: it is a pipe or a device"):
            read_bytes(path)


def test_a_giant_is_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(InputError, match="holds 8,589,934,592 bytes; the largest file that is read here has 4,294,967,296"):
        read_bytes(tmp_path / "sparse")
    (tmp_path / "small").write_bytes(b"12345")
    assert read_bytes(tmp_path / "small", limit=5) == b"12345"
    with pytest.raises(InputError, match="holds 5 bytes; the largest file that is read here has 4"):
        read_bytes(tmp_path / "small", limit=4)
