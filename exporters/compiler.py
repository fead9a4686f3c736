"""C++ libraries that are compiled at first use and kept in the user's cache folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from qn_deploy.errors import ToolchainError


def find_compiler() -> tuple[str, ...]:
    """The C++ compiler's command: $CXX, else the first of c++, g++ and clang++ on PATH.

    Raises:
        ToolchainError: none of them exists.
    """
    chosen = tuple(shlex.split(os.environ.get("CXX", "")))
    if chosen and not shutil.which(chosen[0]):
        raise ToolchainError(f"CXX names the compiler {chosen[0]!r}, which is not on PATH; set CXX to a C++17 compiler or unset it")
    for candidate in (chosen, ("c++",), ("g++",), ("clang++",)):
        if candidate and shutil.which(candidate[0]):
            return candidate
    raise ToolchainError(
        "no C++ compiler found (looked for c++, g++, clang++): running tables compiles a small library once. "
        "Install one (Debian, Ubuntu: apt-get install g++) or set CXX"
    )


def compile_once(command: Sequence[str], name: str, sources: Sequence[Path], *also: bytes) -> Path:
    """A compiled library; runs `command`, a compiler's without "-o", unless the cache folder has what it makes.

    Args:
        command: the compiler and its arguments.
        name: file name of the library.
        sources: the files that it is made of, headers included.
        also: what else decides about the result.

    Returns:
        Path of the shared library.

    Raises:
        ToolchainError: compiling fails, or the cache folder can't be written.
    """
    version = run_compiler([command[0], "--version"])
    parts = (version.encode(), *map(str.encode, command), *also, *(path.read_bytes() for path in sources))
    library = _cache_folder() / sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()[:24] / name
    if not library.exists():
        _compile(command, library)
    return library


def run_compiler(command: Sequence[str]) -> str:
    """What a compiler prints.

    Raises:
        ToolchainError: it does not run or fails; with its last lines.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ToolchainError(f"can't run the compiler {command[0]!r}: {error}; set CXX to a C++17 compiler") from None
    if done.returncode:
        if re.search(r"-lz\b|library '?z\b", done.stderr):
            raise ToolchainError("the linker does not find zlib (-lz); install it (Debian, Ubuntu: apt-get install zlib1g)")
        last = " | ".join(done.stderr.strip().splitlines()[-15:])
        raise ToolchainError(f"compiling failed ({shlex.join(command)}): {last}")
    return done.stdout


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qn-deploy"


def _compile(command: Sequence[str], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = Path(folder) / library.name
            run_compiler([*command, "-o", str(fresh)])
            os.replace(fresh, library)  # atomic: whoever builds at the same time wins or loses with the same file
    except OSError as error:
        raise ToolchainError(f"can't write the compiled library to {library}: {error}; set XDG_CACHE_HOME to a folder you own") from None
