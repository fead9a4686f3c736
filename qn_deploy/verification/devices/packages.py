"""Fetches what a bundle is made of, without root: Debian packages, verified and unpacked by apt's and dpkg's own tools, and wheels."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

from qn_deploy.errors import ToolchainError
from qn_deploy.verification.devices.device import Ended, call, last_line


def fetch_debian(packages: tuple[str, ...], architecture: str | None, downloads: Path, target: Path) -> None:
    """Downloads packages from the Debian archive that this machine is set up for, and unpacks them into a folder.

    apt keeps its lists and files in `downloads`, so that it needs no root and changes nothing of this machine.

    Args:
        packages: their names.
        architecture: of another machine: these packages alone; None: of this one, with all that they depend on and that is not installed.
        downloads: folder for what is downloaded.
        target: folder that becomes their root.

    Raises:
        ToolchainError: there is no apt-get or dpkg-deb here, or it fails.
    """
    folder = downloads / (architecture or "tools")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    options = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": os.environ.get("USER", "root") if os.getuid() else "root",  # apt's own user can't write here
        "Debug::NoLocking": "1",
    }
    if architecture is not None:
        (folder / "status").touch()  # of another machine nothing is installed
        options |= {"APT::Architecture": architecture, "APT::Architectures": architecture, "Dir::State::status": folder / "status"}
    apt = ("apt-get", "-qq", "-y", *(word for key, value in options.items() for word in ("-o", f"{key}={value}")))
    archives = folder / "cache/archives"
    _do((*apt, "update"))
    if architecture is None:
        _do((*apt, "install", "--download-only", "--no-install-recommends", *packages))
    else:
        _do((*apt, "download", *packages), archives)
    target.mkdir(parents=True, exist_ok=True)
    for archive in sorted(archives.glob("*.deb")):
        _do(("dpkg-deb", "-x", str(archive), str(target)))


def fetch_wheel(package: str, version: str, sha256: str, downloads: Path) -> Path:
    """Downloads the aarch64 wheel for CPython 3.11 with pip, checks it, and unpacks it into a folder, which is returned.

    Raises:
        ToolchainError: pip fails, or the wheel has another sha256.
    """
    target = downloads / f"{package}-{version}-{sha256[:16]}"
    if target.exists():
        return target
    downloads.mkdir(parents=True, exist_ok=True)
    requirement = downloads / f"{package}.txt"
    requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    tags = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_aarch64")
    flags = ("--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes")
    wheels = downloads / "wheels"
    _do((sys.executable, "-m", "pip", "download", *flags, *tags, "-d", str(wheels), "-r", str(requirement)))
    (wheel,) = wheels.glob(f"{package}-{version}-*aarch64.whl")
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(fresh)
    fresh.rename(target)
    wheel.unlink()
    return target


def _do(command: tuple[str, ...], folder: Path | None = None) -> Ended:
    ended = call(command, folder=folder)
    if ended.code:
        errors = [line for line in ended.err.splitlines() if line.startswith(("E:", "ERROR"))]
        reason = errors[0] if errors else last_line(ended.err) or last_line(ended.out)
        raise ToolchainError(f"{' '.join((command[0], *command[-2:]))} {ended.ending}: {reason}")
    return ended
