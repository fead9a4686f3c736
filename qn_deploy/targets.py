"""Where a program is to run, and what that decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One kind of machine.

    Attributes:
        title: one line on it.
        machine: what `uname -m` calls it.
        saturates: some of its processors (x86 without VNNI) add pairs of int8 products in 16 bits: a file whose sums may not fit says so,
            with the session option that makes them exact. `--centroid-range 64` needs none.
        devices: kinds of devices that stand for it where this machine is another one, the best first; `verify` names the next step.
    """

    title: str
    machine: str
    saturates: bool
    devices: tuple[str, ...]


TARGETS = {
    "arm": Target("64-bit ARM phones and boards", "aarch64", saturates=False, devices=("adb", "qemu")),
    "x86": Target("x86-64 laptops and servers", "x86_64", saturates=True, devices=()),
}
DEFAULT_TARGET = "arm"
