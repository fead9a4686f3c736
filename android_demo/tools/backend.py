"""Compiles our native libraries for the shim: the backend against the pinned ExecuTorch for Android, and the operators for onnxruntime.

An app takes them from the NDK (README.md). Here it is clang with LLVM's C++ library, as there: the arguments of ExecuTorch's virtual
functions have that library's types.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtimes import runtimes
from shim import Machine
from toolchain import APP, run

EXPORTERS = APP.parent / "exporters"
BACKEND, OPERATORS = "libqn_xnnpack_backend.so", "libqn_onnx_ops.so"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror")


def build_libraries(machine: Machine, libraries: Path) -> None:
    """Writes both into the folder that `shim.make` filled.

    Raises:
        BuildError: clang, LLVM's C++ headers or zlib are missing, or they do not compile.
    """
    include = runtimes() / "include"
    headers = ("-isystem", include, "-isystem", include / "executorch/runtime/core/portable_type/c10")
    kernels = _compile(machine, sorted((EXPORTERS / "kernels").glob("*.cpp")), libraries)
    native = EXPORTERS / "to_executorch/native"
    backends = _compile(
        machine, [native / "qn_xnnpack_backend.cpp", native / "qn_table_backend.cpp"], libraries, "-DET_USE_THREADPOOL", *headers
    )
    operators = _compile(machine, [EXPORTERS / "to_onnx/native/qn_onnx_ops.cpp"], libraries)
    # -lexecutorch, whose SONAME is libexecutorch_jni.so: found by that once the app has loaded it.
    needed = (f"-L{libraries}", "-l:libc++_shared.so", "-Wl,--allow-shlib-undefined")
    run(*machine.compiler, "-shared", *backends, *kernels, "-lexecutorch", machine.zlib, *needed, "-o", libraries / BACKEND)
    run(*machine.compiler, "-shared", *operators, *kernels, f"-Wl,-soname,{OPERATORS}", *needed, "-o", libraries / OPERATORS)


def _compile(machine: Machine, sources: Sequence[Path], folder: Path, *options: str | Path) -> list[Path]:
    """The object files."""
    objects = []
    for source in sources:
        objects.append(folder / f"{source.stem}.o")
        run(*machine.clang, *FLAGS, *options, "-c", source, "-o", objects[-1])
    return objects
