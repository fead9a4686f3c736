"""What the build and the tests without Gradle need: Debian's tools, and packages pinned by hash in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

TOOLS = Path(__file__).parent
APP = TOOLS.parent
PACKAGES = {
    "javac": "default-jdk-headless", "mvn": "maven", "npm": "npm", "aapt2": "aapt", "zipalign": "zipalign", "apksigner": "apksigner",
    "gcc": "gcc", "clang++": "clang libc++-dev", "readelf": "binutils",
}  # fmt: skip
QUICK = "-XX:TieredStopAtLevel=1"  # for runs of seconds: the JVM's second compiler would take more time than it saves
LINES = 40  # of what a tool said that are shown when it fails
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


class BuildError(Exception):
    """A tool is missing or failed."""


def missing(commands: Sequence[str]) -> str | None:
    """Which of these commands is not here, and how to install it on Debian; None if all are."""
    absent = [command for command in commands if shutil.which(command) is None]
    return f"{', '.join(absent)} missing: apt-get install {' '.join(PACKAGES[name] for name in absent)}" if absent else None


def run(*command: str | Path) -> str:
    """What a command prints on standard output.

    Raises:
        BuildError: it failed; the message has what it printed.
    """
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildError(missing([str(command[0])]) or f"{command[0]} is missing") from None
    if done.returncode:
        said = (done.stdout + done.stderr).splitlines()
        raise BuildError("\n".join([f"{command[0]} failed with exit code {done.returncode}:", *said[-LINES:]]))
    return done.stdout


def sources(*folders: str | Path) -> list[Path]:
    """The Java files of folders of the app's project."""
    return sorted(path for folder in folders for path in (APP / folder).rglob("*.java"))


@cache
def packages() -> Path:
    """The folder with the packages of pom.xml; Maven fetches them if they are not there, whole and unchanged.

    Raises:
        BuildError: they can't be fetched, or differ from packages.sha256.
    """
    pins = (TOOLS / "packages.sha256").read_text()
    cache = cache_folder() / f"packages-{hashlib.sha256(pins.encode()).hexdigest()[:16]}"
    if _wrong(cache, pins):
        if reason := missing(["mvn"]):
            raise BuildError(reason)
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as fresh:
            run("mvn", "-q", "-B", "-f", TOOLS / "pom.xml", COPY, f"-DoutputDirectory={fresh}")
            if wrong := _wrong(Path(fresh), pins):
                raise BuildError(f"these packages are not those that packages.sha256 pins: {', '.join(wrong)}")
            shutil.rmtree(cache, ignore_errors=True)
            shutil.copytree(fresh, cache)
    return cache


def npm_packages() -> dict[str, Path]:
    """The archives of npm.sha256 by the package's name, from the user's cache; npm fetches them if they are not there.

    Raises:
        BuildError: they can't be fetched, or are not those that the file pins.
    """
    archives = {}
    for line in (TOOLS / "npm.sha256").read_text().splitlines():
        digest, name = line.split()
        archive = cache_folder() / "npm" / f"{name.replace('@', '-')}.tgz"
        if not archive.is_file() or _sha256(archive) != digest:
            if reason := missing(["npm"]):
                raise BuildError(reason)
            archive.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=archive.parent) as fresh:
                run("npm", "pack", "--silent", "--pack-destination", fresh, name)
                (fetched,) = Path(fresh).iterdir()
                if _sha256(fetched) != digest:
                    raise BuildError(f"npm gave a {name} that is not the one that npm.sha256 pins")
                fetched.replace(archive)
        archives[name.partition("@")[0]] = archive
    return archives


def cache_folder() -> Path:
    """Where packages and the debug key are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qn-deploy" / "android"


def jar(name: str) -> Path:
    """A package of the cache by its artifact's name."""
    return next(packages().glob(f"{name}-[0-9]*.jar"))


def fail(error: BuildError) -> None:
    """Ends the process with the error's message."""
    sys.exit(f"Error: {error}")


def _wrong(folder: Path, pins: str) -> list[str]:
    lines = [line.split() for line in pins.splitlines()]
    return [name for digest, name in lines if not (folder / name).is_file() or _sha256(folder / name) != digest]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if sys.version_info >= (3, 11) else hashlib.sha256(file.read()).hexdigest()
