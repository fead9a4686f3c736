"""`qn-deploy devices setup qemu` for real, on machines that have nothing of a cross compiler, half of it, all of it.

A machine here is what the command can see of one: the programs on PATH, what dpkg says is installed, and an empty home. The packages are
Debian's own, from the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from conftest import COMMAND
from qn_deploy.verification.devices import packages

pytestmark = [
    pytest.mark.slow,
    pytest.mark.device,
    pytest.mark.skipif(not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="apt-get and dpkg-deb are not there"),
]
OURS = ("aarch64-linux-gnu-", "qemu-")  # the programs that this is about
# The C++ half: where only the C compiler is installed, apt has nothing but these to fetch.
SECOND_HALF = ("g++", "libstdc++-", "qemu")


@dataclass(frozen=True)
class Installed:
    """Real packages, unpacked into a root of the test's own as they lie on a machine where they are installed.

    Attributes:
        root: their files.
        stanzas: what dpkg's status says of each package.
    """

    root: Path
    stanzas: dict[str, str]

    def half(self) -> dict[str, str]:
        """Those of the C compiler only."""
        return {name: stanza for name, stanza in self.stanzas.items() if not name.startswith(SECOND_HALF)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The cross compiler and qemu with all that they depend on."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "state").mkdir()
    archives = packages._download(("g++-aarch64-linux-gnu", "qemu-user-static"), None, folder / "state")
    stanzas = {}
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, folder / "root"], check=True)
        control = subprocess.run(["dpkg-deb", "-f", archive], capture_output=True, text=True, check=True).stdout
        stanzas[archive.name.partition("_")[0]] = f"Status: install ok installed\n{control}\n"
    return Installed(folder / "root", stanzas)


@dataclass(frozen=True)
class Machine:
    """What the command sees of a machine, and the bundle that it made there."""

    environment: dict[str, str]
    bundle: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs the command there."""
        return run(self.environment, *arguments)


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False)


def set_up(folder: Path, installed: Installed, which: str) -> Machine:
    """A machine that has nothing, half or all of these packages, after `qn-deploy devices setup qemu`."""
    stanzas = {"nothing": {}, "half": installed.half(), "all": installed.stanzas}[which]
    programs = folder / "programs"
    programs.mkdir()
    for program in (path for place in ("/usr/bin", "/bin", "/usr/sbin", "/sbin") for path in Path(place).glob("*")):
        if not program.name.startswith(OURS) and not (programs / program.name).is_symlink():
            (programs / program.name).symlink_to(program)
    for program in (installed.root / "usr/bin").iterdir():
        second = "++" in program.name or program.name.startswith("qemu")
        if program.name.startswith(OURS) and (which == "all" or (which == "half" and not second)):
            (programs / program.name).symlink_to(program)
    assert ((programs / "aarch64-linux-gnu-gcc").exists(), (programs / "aarch64-linux-gnu-g++").exists()) == (
        which != "nothing",
        which == "all",
    )
    (folder / "status").write_text("".join(stanzas.values()))
    (folder / "apt.conf").write_text(f'Dir::State::status "{folder}/status";\n')
    (folder / "home").mkdir()
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment = {"PATH": str(programs), "HOME": str(folder / "home"), "APT_CONFIG": str(folder / "apt.conf"), **proxies}
    done = run(environment, "devices", "setup", "qemu")
    assert done.returncode == 0, done.stderr
    bundle = Path(done.stdout.splitlines()[0])
    assert bundle.is_relative_to(folder / "home/.cache")
    return Machine(environment, bundle)


@pytest.fixture(scope="module")
def bare(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine that has nothing, set up."""
    return set_up(tmp_path_factory.mktemp("bare"), installed, "nothing")


def test_a_new_machine_verifies_on_an_emulated_processor(bare: Machine, build: Any) -> None:
    assert sorted(path.name for path in (bare.bundle / "bin").iterdir()) == ["qn_onnx_runner", "qn_runner"]
    assert (bare.bundle.parent / "qemu-user-static").exists()
    done = bare.run("verify", build.folder, "--device", "qemu:cortex-a76")
    assert done.returncode == 0, done.stdout + done.stderr
    again = bare.run("devices", "setup", "qemu")
    assert (again.returncode, again.stdout.splitlines()[0], "fetching" in again.stderr) == (0, str(bare.bundle), False)


@pytest.mark.parametrize("which", ["half", "all"])
def test_what_is_installed_changes_no_byte_of_the_bundle(which: str, bare: Machine, installed: Installed, tmp_path: Path) -> None:
    other = set_up(tmp_path, installed, which)
    assert contents(other.bundle) == contents(bare.bundle)
    assert (other.bundle.parent / "qemu-user-static").exists() == (which == "half")  # a qemu that is installed is used


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their place."""
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}
