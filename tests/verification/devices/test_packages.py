"""apt-get and dpkg-deb for real, on an archive that the test makes: which packages come, whatever the machine has."""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from qn_deploy.errors import ToolchainError
from qn_deploy.verification.devices.packages import fetch_debian, fetch_wheel, whole

needs_apt = pytest.mark.skipif(not (shutil.which("apt-get") and shutil.which("dpkg-deb")), reason="apt-get and dpkg-deb are not there")
DEPENDS = {"compiler": "assembler, headers", "assembler": "libopcodes", "libopcodes": "libc6", "headers": "", "libc6": "", "other": ""}


@dataclass(frozen=True)
class Machine:
    """What apt takes for this machine: its list of archives and its status, both of the test's own making."""

    folder: Path
    patch: pytest.MonkeyPatch

    def archive(self, architecture: str) -> None:
        """Makes an archive with the packages above, each of one file, for apt to fetch from."""
        folder, entries = self.folder / "archive", []
        folder.mkdir()
        for name, depends in DEPENDS.items():
            content = folder / name
            (content / "DEBIAN").mkdir(parents=True)
            (content / "usr").mkdir()
            (content / "usr" / name).write_text(name)
            control = f"Package: {name}\nVersion: 1\nArchitecture: {architecture}\nMaintainer: t <t@t>\nDescription: {name}\n"
            control += f"Depends: {depends}\n" if depends else ""
            (content / "DEBIAN/control").write_text(control)
            package = folder / f"{name}_1.deb"
            subprocess.run(["dpkg-deb", "--root-owner-group", "-b", content, package], check=True, stdout=subprocess.DEVNULL)
            sha256 = hashlib.sha256(package.read_bytes()).hexdigest()
            entries.append(f"{control}Filename: ./{package.name}\nSize: {package.stat().st_size}\nSHA256: {sha256}\n")
        (folder / "Packages").write_text("\n".join(entries))
        self.configure(f"deb [trusted=yes] copy:{folder} ./\n")

    def configure(self, sources: str) -> None:
        """Sets apt's sources, and the status that says what is installed; `APT_CONFIG` is read before the options of a command."""
        (self.folder / "sources.list").write_text(sources)
        options = {"Dir::Etc::sourcelist": "sources.list", "Dir::Etc::sourceparts": "none", "Dir::State::status": "status"}
        (self.folder / "apt.conf").write_text("".join(f'{key} "{self.folder}/{value}";\n' for key, value in options.items()))
        self.patch.setenv("APT_CONFIG", str(self.folder / "apt.conf"))

    def install(self, *names: str) -> None:
        """Says in the machine's status that these are installed."""
        lines = "Status: install ok installed\nVersion: 1\nMaintainer: t <t@t>\nDescription: x"
        (self.folder / "status").write_text("".join(f"Package: {name}\nArchitecture: {native()}\n{lines}\n\n" for name in names))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with nothing on it and no archive."""
    result = Machine(tmp_path / "machine", monkeypatch)
    result.folder.mkdir()
    result.configure("")
    result.install()
    return result


def native() -> str:
    """dpkg's name of this machine's architecture."""
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


def unpacked(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "usr").iterdir())


@needs_apt
@pytest.mark.parametrize("installed", [(), ("assembler", "libopcodes", "libc6"), tuple(DEPENDS)], ids=["nothing", "half", "all"])
def test_all_that_a_package_depends_on_comes_whatever_is_installed(installed: tuple[str, ...], machine: Machine, tmp_path: Path) -> None:
    machine.archive(native())
    machine.install(*installed)
    fetch_debian(("compiler",), None, tmp_path / "root")
    libc = ["libc6"] if platform.machine() == "aarch64" else []  # this machine's loader wants this machine's own
    assert unpacked(tmp_path / "root") == ["assembler", "compiler", "headers", *libc, "libopcodes"]
    assert {path.name for path in tmp_path.iterdir()} == {"machine", "root"}  # nothing else is left


@needs_apt
def test_of_another_machine_the_named_packages_come_alone(machine: Machine, tmp_path: Path) -> None:
    machine.archive("riscv64")
    fetch_debian(("compiler", "libc6"), "riscv64", tmp_path / "root")
    assert unpacked(tmp_path / "root") == ["compiler", "libc6"]


@needs_apt
def test_what_is_there_is_not_fetched_again(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    fetch_debian(("no-such-package",), None, tmp_path / "root")


@needs_apt
def test_a_package_that_no_archive_has_is_told_in_a_sentence(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(
        ToolchainError,
        match=r"^can't fetch no-such: apt-get ended with exit code 100: E: Unable to locate package no-such; look at the network and at",
    ):
        fetch_debian(("no-such",), None, tmp_path / "root")
    assert not (tmp_path / "root").exists()


@needs_apt
def test_an_archive_that_cannot_be_reached_is_named(machine: Machine, tmp_path: Path) -> None:
    machine.configure(f"deb [trusted=yes] copy:{tmp_path}/nowhere ./\n")
    with pytest.raises(ToolchainError, match=r"can't fetch zlib1g for arm64: .*\(and before, apt-get update: E: .*nowhere.*\); look at"):
        fetch_debian(("zlib1g",), "arm64", tmp_path / "root")


@needs_apt
def test_another_archive_that_fails_does_no_harm(machine: Machine, tmp_path: Path) -> None:
    machine.archive(native())
    (machine.folder / "sources.list").open("a").write(f"deb [trusted=yes] copy:{tmp_path}/nowhere ./\n")
    fetch_debian(("headers",), None, tmp_path / "root")
    assert unpacked(tmp_path / "root") == ["headers"]


@needs_apt
def test_a_package_that_is_damaged_is_told_in_a_sentence(machine: Machine, tmp_path: Path) -> None:
    machine.archive(native())
    with (machine.folder / "archive/headers_1.deb").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(ToolchainError, match=r"^can't fetch headers: apt-get ended with exit code 100: E: .*headers_1\.deb"):
        fetch_debian(("headers",), None, tmp_path / "root")


def test_without_apt_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"can't run apt-get: No such file or directory; .*: do it on Debian or a derivative of it"):
        fetch_debian(("zlib1g",), "arm64", tmp_path / "target")


def test_a_wheel_that_cannot_be_had_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ToolchainError, match=r"^can't fetch the wheel of x 1\.0 for aarch64: pip ended .*: ERROR: .*x==1\.0.*; look at"):
        fetch_wheel("x", "1.0", "0" * 64, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "parent/target"
    with pytest.raises(ZeroDivisionError), whole(target) as fresh:
        (fresh / "half").touch()
        _ = 1 / 0
    assert list(target.parent.iterdir()) == []
    with whole(target) as fresh:
        (fresh / "all").touch()
        assert not target.exists()
    assert [path.name for path in target.parent.rglob("*")] == ["target", "all"]


def test_who_is_second_leaves_the_folder_of_the_first(tmp_path: Path) -> None:
    with whole(tmp_path / "target") as second:
        (second / "second").touch()
        with whole(tmp_path / "target") as first:
            (first / "first").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "first"]
