"""Builds the native backend against the installed ExecuTorch package and keeps the library in the user's cache folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from qn_deploy.errors import ToolchainError

from ..compiler import compile_once, find_compiler, run_compiler
from ..kernels.build import FLAGS, HEADERS, SOURCES

LIBRARY = "libqn_xnnpack_backend.so"
_NATIVE = Path(__file__).parent / "native"
BACKENDS = (*(_NATIVE / name for name in ("qn_xnnpack_backend.cpp", "qn_table_backend.cpp")), *SOURCES)  # of the library


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
        *FLAGS,
        "-shared",
        *package_flags(package),
        *map(str, BACKENDS),
        *(f"-L{package / 'lib'}", "-Wl,--no-as-needed", "-lexecutorch", "-lexecutorch_threadpool", "-Wl,--as-needed"),
        *(f"-Wl,-rpath,{package / 'lib'}", find_zlib(compiler)),
    ]
    return compile_once(command, LIBRARY, (*BACKENDS, *sorted(_NATIVE.glob("*.h")), *HEADERS), (package / "version.py").read_bytes())


def package_flags(package: Path) -> tuple[str, ...]:
    """What compiles against an ExecuTorch package; the macros are set as they were for the package's own libraries."""
    include = package / "include"
    macros = ("-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL")
    return ("-std=c++17", *macros, "-isystem", str(include), "-isystem", str(include / "executorch/runtime/core/portable_type/c10"))


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
    missing = {name for name in ("libz.so", "libz.so.1") if run_compiler([*compiler, f"-print-file-name={name}"]).strip() == name}
    return "-l:libz.so.1" if missing == {"libz.so"} else "-lz"
