"""Devices by name, and what there is of them on this machine."""

from __future__ import annotations

import platform
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from qn_deploy.errors import InputError, ToolchainError
from qn_deploy.targets import TARGETS
from qn_deploy.verification.devices.bundle import SETUP, find_bundle, find_tools
from qn_deploy.verification.devices.device import Device, call
from qn_deploy.verification.devices.qemu import CPUS, DEFAULT_CPU, Qemu, known_cpus
from qn_deploy.verification.devices.remote import Adb, Ssh

CPU = "cpu"  # this machine, which every verification runs on


def open_device(name: str) -> Device:
    """The device of this name: qemu[:CPU], adb[:SERIAL] or ssh:HOST.

    Raises:
        InputError: no device is called so.
        ToolchainError: it is not there, or what it needs on this machine is not.
    """
    kind, _, which = name.partition(":")
    if kind == "qemu":
        qemu = find_tools().qemu
        if qemu is None:
            raise ToolchainError(f"{name} needs qemu, which is not there; get it: {SETUP}")
        return Qemu(which or DEFAULT_CPU, qemu)
    if kind == "adb":
        return Adb(which or None)
    if kind == "ssh" and which:
        return Ssh(which)
    raise InputError(f"there is no device {name!r}; expected {CPU}, qemu[:CPU], adb[:SERIAL] or ssh:HOST. `qn-deploy devices` lists them")


@dataclass(frozen=True)
class Found:
    """A line of `qn-deploy devices`: a device, whether it can be used, and what it is or the command that makes it usable."""

    name: str
    ready: bool
    remark: str


def list_devices() -> tuple[Found, ...]:
    """What is there, what is missing, and how to get it."""
    try:
        find_bundle()
        missing = ""
    except ToolchainError as error:
        missing = str(error)
    return (
        Found(CPU, True, f"this machine, {platform.machine()}"),
        Found("bundle", not missing, missing or "runtimes and runners for 64-bit ARM: what every device below runs"),
        *_list_qemu(not missing),
        *_list_adb(not missing),
        _list_ssh(not missing),
    )


def next_device(target: str, folder: Path) -> str:
    """The command that verifies a build on a device of its target, or that makes one usable; empty if this machine is of that kind."""
    known = TARGETS[target]
    if not known.devices or platform.machine() == known.machine:
        return ""
    ready = [device.name for device in list_devices() if device.ready]
    for kind in known.devices:
        name = f"{kind}:{DEFAULT_CPU}" if kind == "qemu" else next((name for name in ready if name.startswith(f"{kind}:")), "")
        if name in ready:
            return f"qn-deploy verify {shlex.quote(str(folder))} --device {name}"
    return SETUP


def _list_qemu(bundle: bool) -> list[Found]:
    qemu = find_tools().qemu
    if qemu is None:
        return [Found("qemu", False, f"not installed: {SETUP}, or (Debian, Ubuntu) apt-get install qemu-user-static")]
    known = known_cpus(qemu)
    return [
        Found(f"qemu:{cpu}", bundle and cpu in known, "emulated" if cpu in known else f"{qemu} does not know it; a newer qemu does")
        for cpu in CPUS
    ]


def _list_adb(bundle: bool) -> list[Found]:
    if shutil.which("adb") is None:
        return [Found("adb", False, "not installed: (Debian, Ubuntu) apt-get install adb")]
    lines = [line.split() for line in call(("adb", "devices")).out.splitlines()[1:] if line.strip()]
    if not lines:
        return [Found("adb", False, "no device is connected; turn on USB debugging, then: adb devices")]
    return [Found(f"adb:{serial}", bundle and state == "device", state) for serial, state, *_ in lines]


def _list_ssh(bundle: bool) -> Found:
    if shutil.which("ssh") is None or shutil.which("scp") is None:
        return Found("ssh:HOST", False, "not installed: (Debian, Ubuntu) apt-get install openssh-client")
    return Found("ssh:HOST", bundle, "any board that takes your key")
