"""The library of our operators: compiled at first use, and registered with a session that should keep tables in memory."""

from __future__ import annotations

from pathlib import Path

from ..compiler import compile_once, find_compiler
from ..kernels.build import FLAGS, HEADERS, SOURCES

LIBRARY = "libqn_onnx_ops.so"
_NATIVE = Path(__file__).parent / "native"
_SOURCE = _NATIVE / "qn_onnx_ops.cpp"


def build_library() -> Path:
    """The compiled library; compiles it (some seconds) unless the cache folder has it. It needs nothing of onnxruntime's.

    `onnxruntime.SessionOptions.register_custom_ops_library` takes it.

    Raises:
        ToolchainError: there is no compiler, or compiling fails.
    """
    return compile_once(library_command(find_compiler()), LIBRARY, (_SOURCE, *sorted(_NATIVE.glob("*.h")), *SOURCES, *HEADERS))


def library_command(compiler: tuple[str, ...]) -> tuple[str, ...]:
    """What compiles the library, but for the file to write."""
    return (*compiler, *FLAGS, "-shared", f"-Wl,-soname,{LIBRARY}", "-fvisibility=hidden", *map(str, SOURCES), str(_SOURCE))
