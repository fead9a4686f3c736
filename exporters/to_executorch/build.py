"""Builds the native backend against the installed ExecuTorch package and keeps the library in the user's cache folder."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

from qn_deploy.errors import ToolchainError

LIBRARY = "libqn_xnnpack_backend.so"
_NATIVE = Path(__file__).parent / "native"
_SOURCE = _NATIVE / "qn_xnnpack_backend.cpp"
_FLAGS = ("-O3", "-fPIC", "-shared")


def build_backend(compiler: tuple[str, ...] | None = None, package: Path | None = None) -> Path:
    """The compiled backend; compiles it (a few seconds) unless the cache folder has it.

    Args:
        compiler: command that compiles C++; None takes $CXX, else the first of c++, g++ and clang++ on PATH.
        package: ExecuTorch package to build against, with its `include` and `lib` folders; None takes the installed one. Another
            compiler and package build for another machine.

    Returns:
        Path of the shared library.

    Raises:
        ToolchainError: there is no compiler or no package, or compiling fails.
    """
    compiler = compiler or find_compiler()
    package = package or find_package()
    command = [
        *compiler,
        *_FLAGS,
        *package_flags(package),
        str(_SOURCE),
        *(f"-L{package / 'lib'}", "-lexecutorch", f"-Wl,-rpath,{package / 'lib'}", find_zlib(compiler)),
    ]
    version = _run([*compiler, "--version"])
    sources = [path.read_bytes() for path in (_SOURCE, *sorted(_NATIVE.glob("*.h")))]
    parts = (version.encode(), *map(str.encode, command), (package / "version.py").read_bytes(), *sources)
    library = _cache_folder() / sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()[:24] / LIBRARY
    if not library.exists():
        _compile(command, library)
    return library


def package_flags(package: Path) -> tuple[str, ...]:
    """What compiles against an ExecuTorch package; the two macros are set as they were for the package's own libraries."""
    include = package / "include"
    macros = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED")
    return ("-std=c++17", *macros, "-isystem", str(include), "-isystem", str(include / "executorch/runtime/core/portable_type/c10"))


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
        "no C++ compiler found (looked for c++, g++, clang++): running a .pte with tables compiles a small backend once. "
        "Install one (Debian, Ubuntu: apt-get install g++) or set CXX"
    )


def find_package() -> Path:
    """Folder of the installed ExecuTorch package, with headers and libraries.

    Raises:
        ToolchainError: it is not installed, or was installed without headers.
    """
    spec = importlib.util.find_spec("executorch")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        if (folder / "include").is_dir() and (folder / "lib").is_dir():
            return folder
    raise ToolchainError(f"the executorch package with its include and lib folders was not found in {folders}; pip install executorch")


def find_zlib(compiler: tuple[str, ...]) -> str:
    """The option that links zlib: without its development package only its run-time name is there, and -lz does not find that.

    Raises:
        ToolchainError: the compiler does not run.
    """
    missing = {name for name in ("libz.so", "libz.so.1") if _run([*compiler, f"-print-file-name={name}"]).strip() == name}
    return "-l:libz.so.1" if missing == {"libz.so"} else "-lz"


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qn-deploy"


def _compile(command: list[str], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = Path(folder) / LIBRARY
            _run([*command, "-o", str(fresh)])
            os.replace(fresh, library)  # atomic: whoever builds at the same time wins or loses with the same file
    except OSError as error:
        raise ToolchainError(f"can't write the compiled backend to {library}: {error}; set XDG_CACHE_HOME to a folder you own") from None


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        raise ToolchainError(f"can't run the compiler {command[0]!r}: {error}; set CXX to a C++17 compiler") from None
    if done.returncode:
        if re.search(r"-lz\b|library '?z\b", done.stderr):
            raise ToolchainError("the linker does not find zlib (-lz); install it (Debian, Ubuntu: apt-get install zlib1g)")
        last = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise ToolchainError(f"compiling the ExecuTorch backend failed ({shlex.join(command)}):\n{last}")
    return done.stdout
