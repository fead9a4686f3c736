"""The bundle: a folder with all that a 64-bit ARM Linux or Android machine needs to run the written files, whatever it has itself.

    lib/    the dynamic loader, libc, libstdc++, libgcc, zlib (Debian's arm64 packages) and the runtimes (their arm64 wheels)
    bin/    the runner of each exporter
    cpu/    a /proc/cpuinfo for each processor that qemu emulates

It is built once into the user's cache folder, under a name that changes with its sources.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.runner import Runner, find_runners
from qn_deploy.verification.devices.packages import fetch_debian, fetch_wheel
from qn_deploy.verification.devices.qemu import CPUS

SETUP = "qn-deploy devices setup qemu"
_LAYOUT = 1  # changes with what this file puts where
_PACKAGES = {  # of Debian, and what is taken from each
    "libc6": ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"),
    "libstdc++6": ("libstdc++.so.6",),
    "libgcc-s1": ("libgcc_s.so.1",),
    "zlib1g": ("libz.so.1",),
}
_QEMU, _COMPILER = "qemu-aarch64-static", "aarch64-linux-gnu-g++"


@dataclass(frozen=True)
class Tools:
    """The programs of this machine that devices need; None where one is missing."""

    qemu: Path | None
    compiler: tuple[str, ...] | None


def cache_folder() -> Path:
    """The folder of bundles, tools and downloads."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qn-deploy/devices"


def find_tools() -> Tools:
    """Those on PATH, else those that `build_bundle` fetched."""
    own = cache_folder() / "tools"
    qemu, compiler = (shutil.which(name) or shutil.which(name, path=str(own / "usr/bin")) for name in (_QEMU, _COMPILER))
    sysroot = (f"--sysroot={own}",) if compiler and Path(compiler).is_relative_to(own) else ()
    return Tools(Path(qemu) if qemu else None, (compiler, *sysroot) if compiler else None)


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
    """Makes the bundle, and fetches what is missing for it: a cross compiler, Debian packages, wheels. Needs no root.

    Args:
        qemu: fetch qemu too, if it is missing.
        progress: called with the name of each stage.

    Raises:
        ToolchainError: this is no Debian (or a derivative with arm64 packages), there is no network, or a compiler fails.
    """
    runners, downloads = find_runners(), cache_folder() / "downloads"
    tools = find_tools()
    folder = _place(runners)
    missing = {"qemu-user-static": qemu and tools.qemu is None, "g++-aarch64-linux-gnu": not folder.exists() and tools.compiler is None}
    if packages := tuple(package for package, needed in missing.items() if needed):
        progress(f"fetching {' and '.join(packages)}")
        fetch_debian(packages, None, downloads, cache_folder() / "tools")
        tools = find_tools()
    if folder.exists():
        return folder
    if tools.compiler is None:
        raise ToolchainError(f"there is no {_COMPILER} on PATH; install it (Debian, Ubuntu: apt-get install g++-aarch64-linux-gnu)")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        fresh = Path(temporary) / "bundle"
        for name in ("lib", "bin"):
            (fresh / name).mkdir(parents=True)
        progress("fetching arm64 libraries")
        _copy_libraries(downloads, fresh / "lib")
        for cpu, described in CPUS.items():
            (fresh / "cpu" / cpu / "proc").mkdir(parents=True)
            (fresh / "cpu" / cpu / "proc/cpuinfo").write_text(described.cpuinfo())
        for runner in runners.values():
            progress(f"fetching {runner.package} {runner.version} for arm64")
            wheel = fetch_wheel(runner.package, runner.version, runner.wheels[runner.version], downloads)
            progress(f"compiling {runner.program}")
            runner.build(tools.compiler, wheel, fresh)
        if not folder.exists():
            fresh.rename(folder)
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
    root = downloads / "arm64-root"
    if not root.exists():
        fetch_debian(tuple(_PACKAGES), "arm64", downloads, root)
    for package, names in _PACKAGES.items():
        for name in names:
            found = [path for path in root.rglob(name) if path.exists() and "aarch64-linux-gnu" in str(path)]
            if not found:
                raise ToolchainError(f"the arm64 package {package} has no {name}; it was made for another layout of Debian")
            shutil.copy(found[0], target / name)
