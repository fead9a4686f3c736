"""Reading and writing whole files: a failed write never costs the user the good file that was there before."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

from qn_deploy.errors import InputError


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, read once, so that what is checked is what is used.

    Raises:
        InputError: the file is missing, a directory, or can't be read.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise InputError(f"cannot read {path}: {_reason(error)}") from error


def write_atomic(path: str | Path, data: bytes) -> None:
    """Writes a file as a whole or not at all: a temporary file beside it, fsync, rename.

    Raises:
        InputError: it can't be written; a file that was there before is as it was.
    """
    temporary = None
    try:
        target = Path(os.path.realpath(path))  # a link stays a link, the file behind it is replaced
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        with temporary.open("xb") as file:
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
