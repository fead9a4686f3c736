"""Compiles our backend against the headers and libraries of the pinned ExecuTorch for Android, for the shim.

An app takes it from the NDK (README.md). Here it is clang with LLVM's C++ library, as there: the arguments of ExecuTorch's virtual
functions have that library's types.
"""

from __future__ import annotations

from pathlib import Path

from runtimes import runtimes
from shim import Machine
from toolchain import APP, run

SOURCE = APP.parent / "exporters/to_executorch/native/qn_xnnpack_backend.cpp"
NAME = "libqn_xnnpack_backend.so"


def build_backend(machine: Machine, libraries: Path) -> None:
    """Writes libqn_xnnpack_backend.so into the folder that `shim.make` filled.

    Raises:
        BuildError: clang, LLVM's C++ headers or zlib are missing, or it does not compile.
    """
    include = runtimes() / "include"
    headers = ("-isystem", include, "-isystem", include / "executorch/runtime/core/portable_type/c10")
    flags = ("-std=c++17", "-O2", "-fPIC", "-Wall", "-Wextra", "-Werror")
    compiled = libraries / "backend.o"
    run(*machine.clang, *flags, *headers, "-c", SOURCE, "-o", compiled)
    # -lexecutorch, whose SONAME is libexecutorch_jni.so: found by that once the app has loaded it.
    needed = (f"-L{libraries}", "-lexecutorch", "-l:libc++_shared.so", machine.zlib, "-Wl,--allow-shlib-undefined")
    run(*machine.compiler, "-shared", compiled, *needed, "-o", libraries / NAME)
