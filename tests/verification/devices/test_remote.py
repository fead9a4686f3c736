from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qn_deploy.errors import InputError, ToolchainError
from qn_deploy.verification.devices.find import list_devices, open_device

StandIn = Callable[..., Path]
NAMES = ["adb:pixel", "ssh:pixel"]


@pytest.mark.parametrize("name", [*NAMES, "adb"])
def test_folders_go_there_and_back(stand_in: StandIn, tmp_path: Path, name: str) -> None:
    root = stand_in(pixel="device")
    (tmp_path / "a folder/inner").mkdir(parents=True)
    (tmp_path / "a folder/inner/file").write_bytes(bytes(range(256)))
    device = open_device(name)
    assert (device.name, device.emulated) == (name, False)
    assert not device.has("there")
    device.put(tmp_path / "a folder", "there")
    assert device.has("there/inner/file")
    place = root / ("data/local/tmp/qn-deploy" if name.startswith("adb") else "home/.cache/qn-deploy/device")
    assert sorted(path.name for path in place.iterdir()) == ["there"]  # nothing half-copied is left
    device.get("there", tmp_path / "back")
    assert (tmp_path / "back/inner/file").read_bytes() == bytes(range(256))
    device.remove("there")
    assert not device.has("there")


@pytest.mark.parametrize("name", NAMES)
def test_a_program_ends_as_it_did_on_the_device(stand_in: StandIn, tmp_path: Path, name: str) -> None:
    def ends(script: str, timeout_s: float = 60) -> tuple[int, str, str]:
        loader.write_text(f"#!/bin/sh\n{script}\n")
        loader.chmod(0o755)
        ended = device.run("b", "program", ("a b", "$HOME", "'"), timeout_s)
        return ended.code, ended.out, ended.ending

    stand_in(pixel="device")
    (tmp_path / "b/lib").mkdir(parents=True)
    (tmp_path / "b/lib/placeholder").touch()
    device = open_device(name)
    device.put(tmp_path / "b", "b")
    (loader,) = [path.parent / "ld-linux-aarch64.so.1" for path in (tmp_path / "device").rglob("placeholder")]
    out = "--library-path\nb/lib\nb/bin/program\na b\n$HOME\n'\n"
    assert ends('printf "%s\\n" "$@"') == (0, out, "ended with exit code 0")  # each word arrives as it was sent
    assert ends("exit 3")[::2] == (3, "ended with exit code 3")
    assert ends("kill -SEGV $$")[::2] == (139, "crashed with SIGSEGV")
    assert ends("kill -ILL $$")[::2] == (132, "crashed with SIGILL")
    assert ends("sleep 5", timeout_s=0.1)[::2] == (124, "did not end in time")


@pytest.mark.parametrize(
    ("name", "devices", "message"),
    [
        ("adb", {}, r"adb: adb: no devices/emulators found; `adb devices`"),
        ("adb", {"one": "device", "two": "device"}, r"adb: adb: more than one device/emulator"),
        ("adb:nine", {"one": "device"}, r"adb:nine: adb: device 'nine' not found"),
        ("adb:one", {"one": "unauthorized"}, r"adb:one: adb: device unauthorized"),
        ("ssh:nowhere", {}, r"ssh:nowhere: ssh: Could not resolve hostname nowhere.*; try: ssh nowhere true"),
    ],
)
def test_a_device_that_is_not_there(stand_in: StandIn, name: str, devices: dict[str, str], message: str) -> None:
    stand_in(**devices)
    with pytest.raises(ToolchainError, match=message):
        open_device(name)


@pytest.mark.parametrize("name", NAMES)
def test_another_kind_of_processor_is_refused(stand_in: StandIn, name: str) -> None:
    stand_in(machine="x86_64", pixel="device")
    with pytest.raises(ToolchainError, match=f"{name} is x86_64; expected aarch64"):
        open_device(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_that_fails_is_told(stand_in: StandIn, tmp_path: Path, name: str) -> None:
    stand_in(pixel="device")
    device = open_device(name)
    with pytest.raises(ToolchainError, match=r"nothing.*No such file or directory"):
        device.get("nothing", tmp_path / "back")


@pytest.mark.parametrize("name", ["phone", "", "ssh", "ssh:", "qemu-arm", "cpu:1"])
def test_a_name_that_means_nothing(name: str) -> None:
    with pytest.raises(InputError, match=r"expected cpu, qemu\[:CPU\], adb\[:SERIAL\] or ssh:HOST"):
        open_device(name)


def test_the_list_names_what_is_connected(stand_in: StandIn, bundle: Path) -> None:
    stand_in(one="device", two="unauthorized")
    found = {device.name: (device.ready, device.remark) for device in list_devices()}
    assert (found["adb:one"], found["adb:two"]) == ((True, "device"), (False, "unauthorized"))


def test_without_adb_the_list_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {device.name: (device.ready, device.remark) for device in list_devices()}
    assert found["adb"] == (False, "not installed: (Debian, Ubuntu) apt-get install adb")
    assert found["ssh:HOST"] == (False, "not installed: (Debian, Ubuntu) apt-get install openssh-client")
    assert found["qemu"] == (False, "not installed: qn-deploy devices setup qemu, or (Debian, Ubuntu) apt-get install qemu-user-static")
    assert found["bundle"] == (False, "the device bundle (runtimes for 64-bit ARM) is not there; make it: qn-deploy devices setup qemu")
    assert found["cpu"][0]
    with pytest.raises(ToolchainError, match="can't run adb: No such file or directory"):
        open_device("adb")
