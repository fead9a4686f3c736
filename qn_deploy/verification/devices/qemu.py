"""64-bit ARM processors emulated by qemu, user mode: the program's own instructions, this machine's kernel."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from qn_deploy.errors import InputError
from qn_deploy.verification.devices.device import Ended, call, loaded

_V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_V8_2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp ssbs"


@dataclass(frozen=True)
class Cpu:
    """What /proc/cpuinfo says of a processor of ARM: its part number and its features."""

    part: int
    features: str

    def cpuinfo(self) -> str:
        """The text of /proc/cpuinfo: the runtimes choose their kernels by it, and read nonsense from that of an x86 machine."""
        lines = {
            "processor\t": "0",
            "BogoMIPS\t": "100.00",
            "Features\t": self.features,
            "CPU implementer\t": "0x41",
            "CPU architecture": "8",
            "CPU variant\t": "0x0",
            "CPU part\t": f"{self.part:#x}",
            "CPU revision\t": "1",
        }
        return "".join(f"{key}: {value}\n" for key, value in lines.items()) + "\n"

    def files(self) -> dict[str, str]:
        """What a kernel says of a machine with one such processor, by path: onnxruntime 1.23 aborts where the number is another in /sys."""
        return {"proc/cpuinfo": self.cpuinfo(), **{f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present")}}


# Not `max`: the SME of Debian 12's qemu 7.2 computes wrong int8 results, with exit code 0.
CPUS = {
    "cortex-a53": Cpu(0xD03, _V8),
    "cortex-a55": Cpu(0xD05, _V8_2),
    "cortex-a72": Cpu(0xD08, _V8),
    "cortex-a76": Cpu(0xD0B, _V8_2),
    "neoverse-n1": Cpu(0xD0C, _V8_2),
}
DEFAULT_CPU = "cortex-a76"


class Qemu:
    """An emulated processor; its working folder is a folder of this machine."""

    emulated = True

    def __init__(self, cpu: str, qemu: Path, options: tuple[str, ...] = ()) -> None:
        """Of this processor, with this qemu and more options of it.

        Raises:
            InputError: the processor is not one of `CPUS`, or this qemu does not know it.
        """
        if cpu not in CPUS:
            reason = "; max computes wrong int8 results on some versions of qemu" if cpu.startswith("max") else ""
            raise InputError(f"there is no device qemu:{cpu}; expected one of {', '.join(f'qemu:{name}' for name in CPUS)}{reason}")
        if cpu not in known_cpus(qemu):
            raise InputError(f"{qemu} knows no {cpu}, a newer qemu does; it knows {', '.join(known_cpus(qemu))}")
        self.name = f"qemu:{cpu}"
        self._qemu = (str(qemu), *options, "-cpu", cpu, "-L")
        self._cpu = cpu
        self._temporary = TemporaryDirectory(prefix="qn-deploy-")  # goes with this object
        self._folder = Path(self._temporary.name)

    def has(self, path: str) -> bool:
        """True if the working folder has it."""
        return (self._folder / path).exists()

    def put(self, source: Path, path: str) -> None:
        """Links it: the device is this machine."""
        (self._folder / path).symlink_to(source.absolute())

    def run(self, bundle: str, program: str, arguments: tuple[str, ...], timeout_s: float) -> Ended:
        """Runs it under qemu, which looks for /proc/cpuinfo in the bundle first."""
        return call((*self._qemu, f"{bundle}/cpu/{self._cpu}", *loaded(bundle, program), *arguments), timeout_s, self._folder)

    def get(self, path: str, target: Path) -> None:
        """Copies it."""
        shutil.copytree(self._folder / path, target)

    def remove(self, path: str) -> None:
        """Removes it."""
        found = self._folder / path
        found.unlink() if found.is_symlink() else shutil.rmtree(found)


@cache
def known_cpus(qemu: Path) -> tuple[str, ...]:
    """Those of `CPUS` that this qemu emulates."""
    words = call((str(qemu), "-cpu", "help")).out.split()
    return tuple(name for name in CPUS if name in words)
