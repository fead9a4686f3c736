"""Reading and writing whole files: a failed write never costs the user the good file that was there before."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import stat
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from qn_deploy.errors import InputError

MAX_BYTES = 4 << 30  # of a file that is read as a whole
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # or opening a pipe would wait for its writer


def read_bytes(path: str | Path, limit: int = MAX_BYTES, links: bool = True) -> bytes:
    """The content of a regular file, read once, so that what is checked is what is used.

    Args:
        path: the file.
        limit: the largest size in bytes that is read.
        links: follow a symbolic link; otherwise one is refused.

    Raises:
        InputError: the file is missing, a directory, a pipe, a device, larger than `limit`, or can't be read.
    """
    try:
        with open(os.open(path, os.O_RDONLY | _NO_WAITING | (0 if links else os.O_NOFOLLOW)), "rb") as file:
            state = os.fstat(file.fileno())
            if stat.S_ISDIR(state.st_mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(state.st_mode):
                raise InputError(f"cannot read {path}: it is a pipe or a device; give a regular file")
            data = b"" if state.st_size > limit else file.read(state.st_size + 1)  # read(limit) would ask for the whole limit
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise InputError(f"cannot read {path}: {_reason(error)}") from error
    if max(state.st_size, len(data)) > limit:
        raise InputError(f"cannot read {path}: it holds {state.st_size:,} bytes; the largest file that is read here has {limit:,}")
    return data


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes a file as a whole or not at all: a temporary file beside it, fsync, rename. What a killed process left of one is swept.

    Raises:
        InputError: it can't be written; a file that was there before is as it was.
    """
    temporary = None
    try:
        target = Path(os.path.realpath(path))  # a link stays a link, the file behind it is replaced
        _sweep(target)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        with temporary.open("xb") as file:
            flock(file, LOCK_EX)  # so that nobody sweeps it
            if not os.fstat(file.fileno()).st_nlink:  # somebody did, before it was locked
                return write_atomic(path, data)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        if temporary is not None:
            with suppress(OSError, ValueError):
                temporary.unlink(missing_ok=True)


def _sweep(target: Path) -> None:
    """Removes temporary files of this target that no process has locked: their writers were killed."""
    for name in glob.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.tmp", root_dir=target.parent):
        path = target.with_name(name)
        with suppress(OSError), open(os.open(path, os.O_RDONLY | _NO_WAITING | os.O_NOFOLLOW), "rb") as file:
            flock(file, LOCK_EX | LOCK_NB)
            path.unlink()


def make_folder(path: str | Path) -> None:
    """Makes a folder and those above it, unless they are there.

    Raises:
        InputError: it can't be made, or a file stands in its place.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be made: {_reason(error)}; choose another folder with --out") from error


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)
