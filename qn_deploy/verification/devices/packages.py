"""Fetches what a bundle is made of, without root: Debian packages, verified and unpacked by apt's and dpkg's own tools, and wheels.

What is installed on this machine makes no difference, nor what a run that was ended left: each folder is made whole or not at all.
"""

from __future__ import annotations

import platform
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from qn_deploy.errors import ToolchainError
from qn_deploy.processes import Ended, call, last_line
from qn_deploy.verification.devices.remote import MACHINE


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """An empty folder to fill. It becomes `target` when it is filled; if that fails, or another process was first, it goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as temporary:
        fresh = Path(temporary) / target.name
        fresh.mkdir()
        yield fresh
        try:
            fresh.rename(target)
        except OSError:
            if not target.exists():
                raise


def fetch_debian(packages: tuple[str, ...], architecture: str | None, target: Path) -> None:
    """Downloads packages from the Debian archive that this machine is set up for, and unpacks them into a folder, unless it is there.

    apt is told that nothing is installed and keeps its lists and files in a folder of its own, so that it needs no root, changes nothing of
    this machine, and leaves out nothing that this machine has.

    Args:
        packages: their names.
        architecture: of another machine: these packages alone; None: of this one, with all that they depend on.
        target: folder that becomes their root.

    Raises:
        ToolchainError: there is no apt-get or dpkg-deb here, or it fails.
    """
    if target.exists():
        return
    with whole(target) as root, TemporaryDirectory(dir=target.parent) as temporary:
        for archive in sorted(_download(packages, architecture, Path(temporary)).glob("*.deb")):
            if architecture is None and archive.name.startswith("libc6_") and platform.machine() != MACHINE:
                continue  # programs start with this machine's loader, and that wants its own C library. The compiler of ARM links with it
            unpacked = call(("dpkg-deb", "-x", str(archive), str(root)))
            if unpacked.code:
                raise ToolchainError(f"can't unpack {archive.name}: dpkg-deb {unpacked.ending}: {_reason(unpacked)}")


def _download(packages: tuple[str, ...], architecture: str | None, folder: Path) -> Path:
    state, archives = folder / "state", folder / "archives"
    for path in (state / "lists/partial", archives / "partial"):
        path.mkdir(parents=True)
    (state / "status").touch()  # nothing is installed
    options = {
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": folder,
        "Dir::Cache::archives": archives,
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # apt's own user can't write here; without root apt asks for no other user
        "Debug::NoLocking": "1",
    }
    if architecture is not None:
        options |= {"APT::Architecture": architecture, "APT::Architectures": architecture}
    apt = ("apt-get", "-qq", "-y", *(word for key, value in options.items() for word in ("-o", f"{key}={value}")))
    try:
        update = call((*apt, "update"))  # where it fails, the packages may come from another archive
    except ToolchainError as error:
        raise ToolchainError(f"{error}; devices are set up with packages of the archive: do it on Debian or a derivative of it") from None
    if architecture is None:
        fetched = call((*apt, "install", "--download-only", "--no-install-recommends", *packages))
    else:
        fetched = call((*apt, "download", *packages), folder=archives)
    if fetched.code:
        before = f" (and before, apt-get update: {_reason(update)})" if update.err.strip() else ""
        kind = "" if architecture is None else f" for {architecture}"
        raise ToolchainError(
            f"can't fetch {' '.join(packages)}{kind}: apt-get {fetched.ending}: {_reason(fetched)}{before}; "
            "look at the network and at the archives in /etc/apt, then do it again"
        )
    return archives


def fetch_wheel(package: str, version: str, sha256: str, downloads: Path) -> Path:
    """Downloads the aarch64 wheel for CPython 3.11 with pip, checks it, and unpacks it into a folder, which is returned.

    The runtime's library in it is the same for each version of Python.

    Raises:
        ToolchainError: pip fails, or the wheel has another sha256.
    """
    target = downloads / f"{package}-{version}-{sha256[:16]}"
    if target.exists():
        return target
    tags = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_aarch64")
    flags = ("--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes")
    with whole(target) as fresh, TemporaryDirectory(dir=downloads) as temporary:
        requirement = Path(temporary) / "requirements.txt"
        requirement.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
        fetched = call((sys.executable, "-m", "pip", "download", *flags, *tags, "-d", temporary, "-r", str(requirement)))
        if fetched.code:
            raise ToolchainError(
                f"can't fetch the wheel of {package} {version} for aarch64: pip {fetched.ending}: {_reason(fetched)}; "
                "look at the network and at pip's index (pip config list), then do it again"
            )
        (wheel,) = Path(temporary).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(fresh)
    return target


def _reason(ended: Ended) -> str:
    errors = [line for line in ended.err.splitlines() if line.startswith(("E:", "ERROR"))]
    return errors[0] if errors else last_line(ended.err) or last_line(ended.out)
