"""The bundle: a folder with all that a 64-bit ARM Linux or Android machine needs to run the written files, whatever it has itself.

    lib/    the dynamic loader, libc, libstdc++, libgcc, zlib (Debian's arm64 packages) and the runtimes (their arm64 wheels)
    bin/    the runner of each exporter
    cpu/    for each processor that qemu emulates, the files by which a kernel describes it

It is built once into the user's cache folder, under a name that changes with its sources.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir

from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.runner import Runner, find_runners
from qn_deploy.verification.devices.packages import fetch_debian, fetch_wheel, whole
from qn_deploy.verification.devices.qemu import CPUS

SETUP = "qn-deploy devices setup qemu"
_LAYOUT = 2  # changes with what this file puts where
_PACKAGES = {  # of Debian, and what is taken from each
    "libc6": ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"),
    "libstdc++6": ("libstdc++.so.6",),
    "libgcc-s1": ("libgcc_s.so.1",),
    "zlib1g": ("libz.so.1",),
}
_QEMU, _QEMU_PACKAGE = "qemu-aarch64-static", "qemu-user-static"
_COMPILER, _COMPILER_PACKAGE = "aarch64-linux-gnu-g++", "g++-aarch64-linux-gnu"


@dataclass(frozen=True)
class Tools:
    """The programs of this machine that devices need; None where one is missing.

    Attributes:
        qemu: the one on PATH, else the one that `build_bundle` fetched.
        compiler: the command of the one that `build_bundle` fetched, whatever else is there: it and its libraries come from one archive.
    """

    qemu: Path | None
    compiler: tuple[str, ...] | None


def cache_folder() -> Path:
    """The folder of bundles, tools and downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "qn-deploy/devices"


def find_tools() -> Tools:
    """Those that are there."""
    qemu = shutil.which(_QEMU) or shutil.which(_QEMU, path=str(cache_folder() / _QEMU_PACKAGE / "usr/bin"))
    root = cache_folder() / _COMPILER_PACKAGE
    compiler = root / "usr/bin" / _COMPILER
    if not compiler.exists():
        return Tools(Path(qemu) if qemu else None, None)
    # By themselves its assembler and linker look for their libraries among this machine's. The rest of the environment is left out:
    # CPLUS_INCLUDE_PATH and the like name headers of this machine.
    libraries = ":".join(str(root / folder / f"{platform.machine()}-linux-gnu") for folder in ("lib", "usr/lib"))
    environment = (f"LD_LIBRARY_PATH={libraries}", f"TMPDIR={gettempdir()}")
    return Tools(Path(qemu) if qemu else None, ("env", "-i", *environment, str(compiler), f"--sysroot={root}"))


def find_bundle() -> Path:
    """The bundle for the installed exporters.

    Raises:
        ToolchainError: it was not built, or was for other sources.
    """
    folder = _place(find_runners())
    if not folder.exists():
        raise ToolchainError(f"the device bundle (runtimes for 64-bit ARM) is not there; make it: {SETUP}")
    return folder


def build_bundle(qemu: bool = True, progress: Callable[[str], None] = lambda stage: None) -> Path:
    """Makes the bundle, and fetches what it is made with: a cross compiler, Debian packages, wheels. Needs no root, and nothing but apt.

    Args:
        qemu: fetch qemu too, if it is missing.
        progress: called with the name of each stage.

    Raises:
        ToolchainError: this is no Debian (or a derivative with arm64 packages), there is no network, or a compiler fails.
    """
    runners, downloads = find_runners(), cache_folder() / "downloads"
    folder = _place(runners)
    if qemu and find_tools().qemu is None:
        progress(f"fetching {_QEMU_PACKAGE}")
        fetch_debian((_QEMU_PACKAGE,), None, cache_folder() / _QEMU_PACKAGE)
    if folder.exists():
        return folder
    progress(f"fetching {_COMPILER_PACKAGE}")
    fetch_debian((_COMPILER_PACKAGE,), None, cache_folder() / _COMPILER_PACKAGE)
    compiler = find_tools().compiler
    if compiler is None:
        raise ToolchainError(f"the package {_COMPILER_PACKAGE} has no {_COMPILER}; it was made for another layout of Debian")
    with whole(folder) as fresh:
        for name in ("lib", "bin"):
            (fresh / name).mkdir()
        progress("fetching arm64 libraries")
        _copy_libraries(downloads, fresh / "lib")
        for cpu, described in CPUS.items():
            for path, text in described.files().items():
                (fresh / "cpu" / cpu / path).parent.mkdir(parents=True, exist_ok=True)
                (fresh / "cpu" / cpu / path).write_text(text)
        for runner in runners.values():
            progress(f"fetching {runner.package} {runner.version} for arm64")
            wheel = fetch_wheel(runner.package, runner.version, runner.wheels[runner.version], downloads)
            progress(f"compiling {runner.program}")
            runner.build(compiler, wheel, fresh)
    return folder


def _place(runners: dict[str, Runner]) -> Path:
    digest = sha256(f"{_LAYOUT} {sorted(CPUS.items())}".encode())
    for name, runner in sorted(runners.items()):
        digest.update(f"{name} {runner.package} {runner.wheels[runner.version]}".encode())
        for path in sorted(runner.sources.iterdir()):
            if path.suffix in (".cpp", ".h"):
                digest.update(sha256(path.read_bytes()).digest())
    return cache_folder() / f"aarch64-{digest.hexdigest()[:16]}"


def _copy_libraries(downloads: Path, target: Path) -> None:
    root = downloads / "arm64"
    fetch_debian(tuple(_PACKAGES), "arm64", root)
    for package, names in _PACKAGES.items():
        for name in names:
            found = [path for path in root.rglob(name) if path.exists() and "aarch64-linux-gnu" in str(path)]
            if not found:
                raise ToolchainError(f"the arm64 package {package} has no {name}; it was made for another layout of Debian")
            shutil.copy(found[0], target / name)
