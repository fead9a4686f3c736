"""Hostile places: files that are no regular ones, and what belongs to another user; how many hostile fixtures there are in all."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qn_deploy.cli.supervisor import execute
from qn_deploy.errors import InputError
from qn_deploy.exporting.folder import replacing
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST
from tests.faults.hostile.planted import refused
from tests.faults.hostile.test_files import MODELS, OPERATORS
from tests.faults.hostile.test_forgeries import BUILDS, FORGED

pytestmark = [pytest.mark.slow, pytest.mark.faults]


def special(kind: str, path: Path) -> Path:
    """A file that is no regular one, or a giant."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(8 << 30)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        path.symlink_to(kind)
    return path


KINDS = ("pipe", "folder", "sparse", "loop", "dangling", "/dev/zero", "/dev/tty", "/proc/self/mem")


@pytest.mark.parametrize("kind", KINDS)
def test_special_files_in_every_command_that_reads(
    model: Any, build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path, out = special(kind, tmp_path / "special"), tmp_path / "out"
    for words in (
        ("inspect", path),
        ("export", path, "--out", out),
        ("export", model.path, "--calibrate", path, "--out", out),
        ("unpack", path, "--out", out),
        ("verify", build.folder, "--layers", path) if kind in ("folder", "pipe") else ("inspect", path),
    ):
        assert refused(capsys, *words).startswith("Error: "), words
    assert not out.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [MANIFEST, GOLDEN, "model.onnx", "model.stock.qnz"])
def test_special_files_in_a_build(build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, name: str) -> None:
    folder = Path(shutil.copytree(build.folder, tmp_path / "build"))
    (folder / name).unlink()
    special(kind, folder / name)
    assert name in refused(capsys, "verify", folder)
    assert name in refused(capsys, "android", folder, "--app", app(tmp_path), "--name", "x")


def app(tmp_path: Path) -> Path:
    (tmp_path / "app/app/src/main").mkdir(parents=True, exist_ok=True)
    (tmp_path / "app/app/src/main/AndroidManifest.xml").write_text("")
    return tmp_path / "app"


@pytest.fixture
def shared(model: Any, build: Any) -> Iterator[Path]:
    """A folder that every user reads, with what root owns and nobody else may write or read."""
    with tempfile.TemporaryDirectory(prefix="qn-faults-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(model.path, folder / "model.pt")
        shutil.copy(model.path, folder / "secret.pt")
        shutil.copytree(build.folder, folder / "build")
        shutil.copytree(build.folder, folder / "locked")
        (folder / "own").mkdir()
        if os.geteuid() == 0:
            os.chown(folder / "own", NOBODY, NOBODY)
        (folder / "own/.build.qn-deploy-new").mkdir()  # of root, where nobody's export would write
        for path, mode in ((folder / "secret.pt", 0), (folder / "build/model.onnx", 0), (folder / "locked", 0o700)):
            path.chmod(mode)
        yield folder


NOBODY, REPLACE = 65534, "replace"


UNPRIVILEGED: dict[str, tuple[tuple[str, ...], str]] = {
    "a model that it may not read": (("inspect", "secret.pt"), "is not readable"),
    "a file of a build that it may not read": (("verify", "build"), "Permission denied"),
    "a build that it may not enter": (("verify", "locked"), ""),
    "a folder that it may not write": (("unpack", "build/model.stock.qnz", "--out", "new.pte"), "Permission denied"),
    "a place that is another user's": ((REPLACE, "own/build"), "of another user"),
    "a build that is another user's": ((REPLACE, "build"), "Permission denied"),
    "a device of root": (("inspect", "/dev/mem"), ""),
    "a file of root": (("inspect", "/etc/shadow"), "is not readable"),
}


def replaced(folder: Path) -> int:
    """As export ends where it can't put its build: its runtimes need more files of this Python than another user may read."""
    try:
        with replacing(folder, lambda place: set()) as write:
            write({"model.onnx": b""})
    except InputError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


@pytest.mark.parametrize("what", UNPRIVILEGED)
def test_an_unprivileged_user(shared: Path, what: str) -> None:
    words, expected = UNPRIVILEGED[what]
    before = sorted(shared.rglob("*"))
    reader, writer = os.pipe()
    if not (child := os.fork()):
        sys.stderr = os.fdopen(writer, "w")
        os.chdir(shared)
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        code = replaced(Path(words[1])) if words[0] == REPLACE else execute(words)
        sys.stderr.flush()
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2, told
    assert "Error: " in told and expected in told and "Traceback" not in told and "a bug of qn-deploy" not in told, told
    assert sorted(shared.rglob("*")) == before


def test_there_are_enough_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    kinds = {
        "models": len(MODELS),
        "operators": len(OPERATORS),
        "special files": len(KINDS),
        "manifests": len(FORGED),
        "builds": len(BUILDS),
        "as another user": len(UNPRIVILEGED),
    }
    with capsys.disabled():
        print(f"\nhostile fixtures: {sum(kinds.values())}, {kinds}")
    assert sum(kinds.values()) >= 130
