"""Runs .pte programs on this machine."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any

from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.quiet import quiet

from .build import build_backend
from .pte import OUR_BACKENDS

_one_at_a_time = Lock()  # sys.stderr is the whole process's


class LoadedProgram:
    """A program in ExecuTorch's runtime. Made by `load_program`."""

    def __init__(self, program: Any, name: str) -> None:
        # A Method points into its Program, and that into the file's bytes: all of them live as long as this object.
        self._program = program
        self._methods: dict[str, Any] = {}
        self._name = name

    def run(self, inputs: tuple[Tensor, ...], method: str = "forward") -> tuple[Tensor, ...]:
        """Executes a method; the first run of a method loads it, which expands its tables.

        Args:
            inputs: one tensor for each input, of the shapes and dtypes that the program was exported with.
            method: name of the method.

        Returns:
            The outputs; they stay valid after the next run.

        Raises:
            InputError: the runtime refuses the method (a damaged table, a missing operator) or the inputs.
        """
        if method not in self._methods:
            self._methods[method] = self._load(method)
        with _native_errors(f"ExecuTorch can't run {method!r} of {self._name}"):
            outputs = self._methods[method].execute([value.contiguous() for value in inputs])
        return tuple(output.clone() for output in outputs)

    def _load(self, method: str) -> Any:
        if method not in self._program.method_names:
            raise InputError(f"{self._name} has no method {method!r}; it has {sorted(self._program.method_names)}")
        with _native_errors(f"ExecuTorch can't load {method!r} of {self._name}"):
            return self._program.load_method(method)


def load_program(source: bytes | Path | str) -> LoadedProgram:
    """Loads a .pte; one that holds tables compiles and registers the native backend first.

    Args:
        source: the program's bytes, or its path.

    Raises:
        InputError: there is no such file, or the runtime refuses it.
        ToolchainError: the native backend is needed and can't be built.
    """
    name = "the program" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise InputError(f"can't read {name}: {error.strerror}; expected a .pte file") from None
    runtime, verification = _runtime()
    if any(backend.encode() in data for backend in OUR_BACKENDS):
        _register_backend()
    with _native_errors(f"ExecuTorch can't load {name} (expected a .pte)"):
        return LoadedProgram(runtime.load_program(data, verification=verification.InternalConsistency), name)


@contextmanager
def _native_errors(failure: str) -> Iterator[None]:
    """Turns a failure of the runtime into an InputError with its first log line as the reason, and keeps the log off the terminal.

    The runtime's exceptions hold numbers only. What it has to say goes to sys.stderr, also where nothing failed (cpuinfo's search for
    files that only phones have).
    """
    log = StringIO()
    try:
        with _one_at_a_time, redirect_stderr(log):
            yield
    except RuntimeError as error:
        lines = re.findall(r"^\[(?!cpuinfo)[^]]*\] (.*)$", log.getvalue(), re.MULTILINE)
        raise InputError(f"{failure}: {lines[0] if lines else error}") from None


@cache
def _runtime() -> tuple[Any, Any]:
    with quiet():
        import executorch.kernels.quantized  # noqa: F401  registers the quantized operators with the runtime
        from executorch.runtime import Runtime, Verification
    return Runtime.get(), Verification


@cache
def _register_backend() -> ctypes.CDLL:
    return ctypes.CDLL(str(build_backend()))  # registers itself as it is loaded, into the libexecutorch that _runtime loaded
