"""The program that runs .onnx files on devices: a small C++ one over the library in onnxruntime's arm64 wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from qn_deploy.exporting.runner import Runner, compile_for_device

_NATIVE = Path(__file__).parent / "native"
_LIBRARY = "libonnxruntime.so.1"


def _build(compiler: tuple[str, ...], wheel: Path, bundle: Path) -> None:
    (library,) = (wheel / "onnxruntime/capi").glob(f"{_LIBRARY}.*")
    shutil.copy(library, bundle / "lib" / _LIBRARY)
    source, program = _NATIVE / "qn_onnx_runner.cpp", bundle / "bin" / RUNNER.program
    compile_for_device((*compiler, "-std=c++17", "-O2", str(source), "-o", str(program), f"-L{bundle / 'lib'}", f"-l:{_LIBRARY}"))


RUNNER = Runner(
    program="qn_onnx_runner",
    package="onnxruntime",
    wheels={
        "1.23.2": "bbfd2fca76c855317568c1b36a885ddea2272c13cb0e395002c402f2360429a6",  # the last for Python 3.10
        "1.31.1": "da05378364c44d4407e463982d2bf8d5e4cfea873283757e48beeb41df97b7f3",
    },
    sources=_NATIVE,
    build=_build,
    options=("--config", "mlas.disable_kleidiai=1"),
    plain=("--plain",),
)
