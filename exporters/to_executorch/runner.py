"""The program that runs .pte files on devices: qn_runner with the table backend, over the libraries in ExecuTorch's arm64 wheel."""

from __future__ import annotations

import shutil
from pathlib import Path

from qn_deploy.exporting.runner import Runner, compile_for_device

from ..kernels.build import FLAGS, FOLDER
from .build import BACKENDS, package_flags

_NATIVE = Path(__file__).parent / "native"
_LIBRARIES = (
    "executorch",
    "executorch_kernels_optimized",
    "executorch_kernels_quantized",
    "executorch_backend_xnnpack",
    "executorch_threadpool",
)


def _build(compiler: tuple[str, ...], wheel: Path, bundle: Path) -> None:
    package, lib = wheel / "executorch", bundle / "lib"
    for name in _LIBRARIES:
        shutil.copy(package / "lib" / f"lib{name}.so", lib)
    # Kernels and backends register themselves; nothing refers to them by name.
    libraries = ("-Wl,--no-as-needed", *(f"-l{name}" for name in _LIBRARIES), "-Wl,--as-needed", "-l:libz.so.1", f"-Wl,-rpath-link,{lib}")
    sources = map(str, (_NATIVE / "qn_runner.cpp", *BACKENDS))
    compile_for_device(
        (*compiler, *FLAGS, *package_flags(package), *sources, "-o", str(bundle / "bin" / RUNNER.program), f"-L{lib}", *libraries)
    )


RUNNER = Runner(
    program="qn_runner",
    package="executorch",
    wheels={"1.5.1": "8ee02348a3ea80ddf770822911ebf78da616b73afce0fbaaa79f23311c88c66a"},
    sources=(_NATIVE, FOLDER),
    build=_build,
)
