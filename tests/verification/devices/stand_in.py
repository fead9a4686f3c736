"""Stands in for `adb`, and for `ssh` and `scp`: their command lines, messages and exit codes, with a folder as the device and qemu as its
processor. Linked under the name that it is to have; what the device is like stands in its environment:

    STAND_IN_ROOT     folder that is the device's file system
    STAND_IN_DEVICES  serials that adb lists, or hosts that ssh knows, as NAME=STATE, separated by blanks
    STAND_IN_MACHINE  what uname -m prints there
    STAND_IN_QEMU     the command that runs its programs
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["STAND_IN_ROOT"])
DEVICES = dict(word.split("=") for word in os.environ["STAND_IN_DEVICES"].split())
TEMPORARY = "/data/local/tmp"  # the one folder of a phone that its shell may write


def fail(message: str, code: int = 1) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def shell(line: str, folder: Path) -> None:
    """Runs a line in the device's shell; ends as it does."""
    tools = ROOT / "tools"
    tools.mkdir(parents=True, exist_ok=True)
    (tools / "uname").write_text(f"#!/bin/sh\necho {os.environ['STAND_IN_MACHINE']}\n")
    (tools / "uname").chmod(0o755)
    folder.mkdir(parents=True, exist_ok=True)
    line = line.replace(TEMPORARY, str(ROOT) + TEMPORARY)
    done = subprocess.run(["/bin/sh", "-c", line], cwd=folder, env={"PATH": f"{tools}:/usr/bin:/bin"}, stdin=subprocess.DEVNULL)
    sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)


def copy(source: Path, target: Path) -> None:
    """As adb and scp copy: into a folder that is there, else under the name that is not."""
    if target.is_dir():
        target = target / source.name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    for loader in [path for path in (*target.rglob("ld-linux-aarch64.so.1"), target) if path.name == "ld-linux-aarch64.so.1"]:
        # This machine's kernel does not run the loader; qemu does, in its place.
        loader.rename(loader.with_suffix(".arm"))
        emulated = f'{os.environ["STAND_IN_QEMU"]} -cpu cortex-a76 -L "$here/../cpu/cortex-a76" "$here/{loader.stem}.arm"'
        loader.write_text(f'#!/bin/sh\nhere=$(dirname "$0")\nexec {emulated} "$@"\n')
        loader.chmod(0o755)


def adb(words: list[str]) -> None:
    serial = None
    if words[0] == "-s":
        serial, words = words[1], words[2:]
    if words == ["devices"]:
        print("List of devices attached")
        for name, state in DEVICES.items():
            print(f"{name}\t{state}")
        print()
        return
    if serial is None and len(DEVICES) != 1:
        fail("adb: more than one device/emulator" if DEVICES else "adb: no devices/emulators found")
    serial = serial or next(iter(DEVICES))
    if serial not in DEVICES:
        fail(f"adb: device '{serial}' not found")
    if DEVICES[serial] != "device":
        fail(f"adb: device {DEVICES[serial]}.")
    command, *rest = words
    if command == "shell":
        shell(" ".join(rest), ROOT)
    source, target = (Path(str(ROOT) + word) if word.startswith(TEMPORARY) else Path(word) for word in rest)
    if command not in ("push", "pull") or not source.exists():
        fail(f"adb: error: cannot stat '{rest[0]}': No such file or directory")
    if command == "push" and not str(target).startswith(str(ROOT)):
        fail(f"adb: error: failed to copy '{rest[0]}' to '{rest[1]}': remote couldn't create file: Read-only file system")
    copy(source, target)
    print(f"{rest[0]}: 1 file {command}ed, 0 skipped.")


def known(host: str) -> None:
    if host not in DEVICES:
        fail(f"ssh: Could not resolve hostname {host}: Name or service not known", 255)
    if DEVICES[host] != "device":
        fail(f"{host}: {DEVICES[host]}", 255)


def ssh(words: list[str]) -> None:
    if words[:3] != ["-o", "BatchMode=yes", "--"]:
        fail(f"this stand-in takes -o BatchMode=yes -- HOST LINE, not {words}", 254)
    known(words[3])
    shell(" ".join(words[4:]), ROOT / "home")


def scp(words: list[str]) -> None:
    paths = []
    for word in words[words.index("-r") + 1 :]:
        host, colon, path = word.partition(":")
        if colon:
            known(host)
        paths.append(ROOT / "home" / path if colon else Path(word))
    if not paths[0].exists():
        fail(f"scp: {paths[0]}: No such file or directory")
    copy(*paths)


{"adb": adb, "ssh": ssh, "scp": scp}[Path(sys.argv[0]).name](sys.argv[1:])
