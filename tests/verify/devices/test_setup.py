"""`qn-deploy devices setup qemu` for real, on machines that have nothing of a cross compiler, half of it, all of it.

A machine here is what the command can see of one: the programs on PATH, what dpkg says is installed, and an empty home. The packages are
Debian's own, from the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import COMMAND
from qn_deploy.verify.devices import packages

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


def machine(folder: Path, installed: Installed, which: str) -> dict[str, str]:
    """The environment of a command on a machine that has nothing, half or all of these packages."""
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
    return {"PATH": str(programs), "HOME": str(folder / "home"), "APT_CONFIG": str(folder / "apt.conf")}


@pytest.mark.parametrize("which", ["nothing", "half", "all"])
def test_the_set_up_does_not_depend_on_what_is_installed(which: str, installed: Installed, build: Any, tmp_path: Path) -> None:
    environment = machine(tmp_path, installed, which) | {key: os.environ[key] for key in ("http_proxy", "https_proxy") if key in os.environ}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=600, check=False)

    done = run("devices", "setup", "qemu")
    assert done.returncode == 0, done.stderr
    made = Path(done.stdout.splitlines()[0])
    assert made.is_relative_to(tmp_path / "home/.cache")
    assert sorted(path.name for path in (made / "bin").iterdir()) == ["qn_onnx_runner", "qn_runner"]
    own = made.parent / "qemu-user-static"
    assert own.exists() == (which != "all")  # a qemu that is installed is used
    done = run("verify", build.folder, "--device", "qemu:cortex-a76")
    assert done.returncode == 0, done.stdout + done.stderr
    again = run("devices", "setup", "qemu")
    assert (again.returncode, again.stdout.splitlines()[0], "fetching" in again.stderr) == (0, str(made), False)
