"""Makes Android's libraries loadable in a process of Debian: libc.so, libm.so, libdl.so, liblog.so and libandroid.so over glibc.

For each function of bionic that a given library asks for there is a symbol that jumps to glibc's function, or to that of shim/libc.c
where the two differ. Beside them a launcher for a Java VM. This is neither Android nor its C library: it lets the code of the runtimes
run, no more.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtimes import runtimes
from toolchain import TOOLS, BuildError, run

SOURCES = TOOLS / "shim"
DATA = {"stderr", "stdin", "stdout", "__sF", "environ"}
OTHER_NAMES = {"__errno": "__errno_location", "strerror_r": "__xpg_strerror_r", "__gnu_strerror_r": "strerror_r"}
QUAD = ("strtold", "frexpl", "ldexpl", "llroundl", "wcstold", "strtold_l")  # long double is IEEE quad on Android's x86_64, not on Debian's


@dataclass(frozen=True)
class Machine:
    """A processor: Android's name for it, and what makes libraries for it that run on Debian.

    Attributes:
        abi: arm64-v8a or x86_64.
        compiler: gcc for it, with options.
        clang: clang++ for it, with options, and with LLVM's C++ headers; it compiles, and does not link.
        zlib: Debian's library.
    """

    abi: str
    compiler: tuple[str, ...]
    clang: tuple[str, ...]
    zlib: Path


def make(machine: Machine, out: Path) -> Path:
    """A folder with the runtimes' libraries for a machine, the shim that they need, and `launch`.

    Raises:
        BuildError: a tool is missing or failed.
    """
    out.mkdir(parents=True, exist_ok=True)
    libraries = []
    for aar in sorted((runtimes() / "aars").glob("*.aar")):
        with zipfile.ZipFile(aar) as archive:
            for name in archive.namelist():
                if name.startswith(f"jni/{machine.abi}/") and name.endswith(".so"):
                    libraries.append(out / Path(name).name)
                    libraries[-1].write_bytes(archive.read(name))
    asked = _asked(libraries)
    (out / "forward.S").write_text(_forwards(machine.abi, asked))
    versions = sorted({version for _, version in asked} | {"LIBC"})
    exported = {"LIBC": "global: __sF; stderr; stdin; stdout; local: qn_*; fw_*; "}
    (out / "map").write_text("".join(f"{version} {{ {exported.get(version, '')}}};\n" for version in versions))
    shared = (*machine.compiler, "-shared", "-fPIC", "-O1", "-w", f"-Wl,--version-script,{out / 'map'}")
    run(
        *shared,
        "-o",
        out / "libc.so",
        "-Wl,-soname,libc.so",
        "-Wl,-z,now",
        out / "forward.S",
        SOURCES / "libc.c",
        "-lm",
        "-ldl",
        "-lpthread",
    )
    (out / "empty.c").write_text("")
    for name in ("libm", "libdl"):  # bionic's libc.so has not all of it; ours has
        run(*shared, "-o", out / f"{name}.so", f"-Wl,-soname,{name}.so", out / "empty.c", "-Wl,--no-as-needed", out / "libc.so")
    for name in ("liblog", "libandroid"):
        run(*machine.compiler, "-shared", "-fPIC", "-O1", "-o", out / f"{name}.so", f"-Wl,-soname,{name}.so", SOURCES / "log.c")
    run(*machine.compiler, "-O1", *_jni_headers(), "-o", out / "launch", SOURCES / "launch.c", "-ldl")
    return out


def _asked(libraries: Sequence[Path]) -> list[tuple[str, str]]:
    """Functions of bionic that libraries ask for, with the version of their symbols."""
    found = set()
    for line in run("readelf", "--dyn-syms", "-W", *libraries).splitlines():
        match = re.search(r" UND (\w+)@(LIBC\w*)", line)
        if match and match[1] not in DATA:
            found.add((match[1], match[2]))
    return sorted(found)


def _forwards(abi: str, asked: Sequence[tuple[str, str]]) -> str:
    """Assembly: each function jumps to the one that does its work, whatever the arguments."""
    own = set(re.findall(r"\bqn_(\w+)\(", (SOURCES / "libc.c").read_text()))
    names = OTHER_NAMES | ({name: _quad(name) for name in QUAD} if abi == "x86_64" else {})
    lines = [".text"]
    for name, version in asked:
        symbol, target = f"fw_{name}_{version}", f"qn_{name}" if name in own else names.get(name, name)
        lines += [f".globl {symbol}", f".type {symbol},%function", f".symver {symbol}, {name}@{version}", f"{symbol}:"]
        if abi == "x86_64":
            lines.append(f" jmp *{target}@GOTPCREL(%rip)")
        else:
            lines += [f" adrp x16, :got:{target}", f" ldr x16, [x16, :got_lo12:{target}]", " br x16"]
    return "\n".join([*lines, '.section .note.GNU-stack,"",%progbits', ""])


def _quad(name: str) -> str:
    """Frexpl -> frexpf128, strtold_l -> strtof128_l."""
    return re.sub(r"(?:ld|l)(_l)?$", r"f128\1", name)


def _jni_headers() -> tuple[str, str]:
    home = Path(shutil.which("javac") or "/").resolve().parents[1]
    if not (home / "include/jni.h").exists():
        raise BuildError("jni.h is missing: apt-get install default-jdk-headless")
    return f"-I{home / 'include'}", f"-I{home / 'include/linux'}"
