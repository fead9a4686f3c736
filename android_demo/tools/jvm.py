"""Runs JUnit tests of the library on a Java VM, with the runtimes' unmodified Android libraries over the shim.

    python android_demo/tools/jvm.py FIXTURES [TEST...] [--minified] [--arm64]

FIXTURES is the folder that runtime_tests/test_android.py fills; without a TEST all run. --minified runs the classes that R8 made of
library, runtimes and tests, --arm64 all of it on an emulated 64-bit ARM processor.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backend import build_libraries
from runtimes import runtimes
from shim import Machine, make
from toolchain import APP, QUICK, BuildError, cache_folder, fail, jar, run, sources

LIBRARY, DEMO, TESTS = "qndeploy/src/main/java", "app/src/main/java/qndeploy/demo/Digit.java", "jvm_tests/java"
OPENED = ("java.io", "java.lang", "java.util")  # Robolectric looks into their classes
JUNIT = ("junit", "hamcrest-core")
KEPT = "-keep class **Test, qndeploy.Fixtures { *; }\n-keepattributes *Annotation*\n-dontwarn **\n"


@dataclass(frozen=True)
class Vm:
    """A Java VM: the command that runs a class after options, the folder of native libraries, and the processor that these are for."""

    command: tuple[str, ...]
    libraries: Path
    machine: Machine

    def run(self, path: Sequence[Path], properties: dict[str, object], tests: Sequence[str]) -> int:
        """JUnit's exit code; it prints its report."""
        defined: dict[str, object] = {
            "java.class.path": ":".join(map(str, path)),
            "java.library.path": self.libraries,
            "onnxruntime.native.path": self.libraries,
        }
        defined["sun.java.command"] = "org.junit.runner.JUnitCore"  # as the java command would say
        options = [f"-D{key}={value}" for key, value in {**defined, **properties}.items()]
        opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED]
        return subprocess.run([*self.command, "-Xmx1g", *opened, *options, "org.junit.runner.JUnitCore", *tests], check=False).returncode


def here(work: Path) -> Vm:
    """This machine's own Java.

    Raises:
        BuildError: the machine is no x86-64, or a tool is missing.
    """
    if platform.machine() != "x86_64":
        raise BuildError(
            f"the runtimes' Android libraries are there for x86_64 and arm64-v8a under qemu; this machine is {platform.machine()}"
        )
    machine = Machine("x86_64", ("gcc",), ("clang++", "-stdlib=libc++"), Path("/lib/x86_64-linux-gnu/libz.so.1"))
    made = make(machine, work / "x86_64")
    libjvm = Path(shutil.which("java") or "/").resolve().parents[1] / "lib/server/libjvm.so"
    return Vm(("env", f"LD_LIBRARY_PATH={made}", str(made / "launch"), str(libjvm), QUICK), made, machine)


def arm64(work: Path) -> Vm:
    """Debian's Java for 64-bit ARM under qemu, user mode; what is missing is fetched into the user's cache by apt, without root."""
    from qn_deploy.verification.devices.bundle import build_bundle, find_tools
    from qn_deploy.verification.devices.packages import fetch_debian
    from qn_deploy.verification.devices.qemu import DEFAULT_CPU

    bundle, tools = build_bundle(), find_tools()
    root = cache_folder() / "arm64-java"
    fetch_debian((f"openjdk-{_java_release()}-jre-headless",), "arm64", root)
    if tools.compiler is None or tools.qemu is None:
        raise BuildError("a cross compiler and qemu are missing: qn-deploy devices setup qemu")
    gcc = tuple(word.replace("aarch64-linux-gnu-g++", "aarch64-linux-gnu-gcc") for word in tools.compiler)  # the shim is C
    # LLVM's headers for C++ come before those of the C library, which they include.
    headers = (max(Path("/usr/lib").glob("llvm-*/include/c++/v1")), _sysroot(gcc) / "usr/aarch64-linux-gnu/include")
    clang = ("clang++", "--target=aarch64-linux-gnu", "-nostdlibinc", "-nostdinc++", *(f"-isystem{folder}" for folder in headers))
    machine = Machine("arm64-v8a", gcc, clang, bundle / "lib/libz.so.1")
    made = make(machine, work / "arm64-v8a")
    (home,) = (path for path in (root / "usr/lib/jvm").iterdir() if path.name.endswith("arm64") and not path.is_symlink())
    own = root / "usr/lib/aarch64-linux-gnu"
    libraries = ":".join(map(str, (made, bundle / "lib", home / "lib", own, root / "lib/aarch64-linux-gnu")))
    loader = (str(bundle / "lib/ld-linux-aarch64.so.1"), "--library-path", libraries)
    qemu = (str(tools.qemu), "-cpu", DEFAULT_CPU, "-L", str(bundle / "cpu" / DEFAULT_CPU))  # its /proc/cpuinfo
    return Vm((*qemu, *loader, str(made / "launch"), str(home / "lib/server/libjvm.so"), QUICK), made, machine)


def _java_release() -> str:
    """17 where java is /usr/lib/jvm/java-17-openjdk-amd64/bin/java."""
    home = Path(shutil.which("java") or "/").resolve().parents[1].name
    return "".join(re.findall(r"java-(\d+)-openjdk", home))


def _sysroot(compiler: Sequence[str]) -> Path:
    return next((Path(word.removeprefix("--sysroot=")) for word in compiler if word.startswith("--sysroot=")), Path("/"))


def runtime_classes(work: Path) -> list[Path]:
    """Jars of the runtimes' Java classes."""
    return class_jars(sorted((runtimes() / "aars").iterdir()), work)


def class_jars(aars: Sequence[Path], work: Path) -> list[Path]:
    """Jars as they are; of AARs their classes, in this folder."""
    work.mkdir(exist_ok=True)
    jars = []
    for aar in aars:
        jars.append(aar)
        if aar.suffix == ".aar":
            jars[-1] = work / f"{aar.stem}.jar"
            with zipfile.ZipFile(aar) as archive:
                jars[-1].write_bytes(archive.read("classes.jar"))
    return jars


def javac(out: Path, path: Sequence[Path], *files: str | Path) -> None:
    """Compiles files and folders of the project.

    Raises:
        BuildError: they do not compile.
    """
    found = [APP / file if str(file).endswith(".java") else sources(file) for file in files]
    every = [path for entry in found for path in (entry if isinstance(entry, list) else [entry])]
    run("javac", f"-J{QUICK}", "-nowarn", "-Xlint:-options", "--release", "11", "-cp", ":".join(map(str, path)), "-d", out, *every)


def pack(classes: Path, target: Path) -> Path:
    """A jar of a folder of classes; the same classes give the same bytes."""
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(path for path in classes.rglob("*") if path.is_file()):
            archive.writestr(zipfile.ZipInfo(str(file.relative_to(classes))), file.read_bytes())
    return target


def minify(inputs: Sequence[Path], libraries: Sequence[Path], work: Path) -> Path:
    """A jar of what R8 in full mode makes of classes, by the rules that the library gives to apps."""
    (work / "kept.pro").write_text(KEPT)
    rules = [word for file in (APP / "qndeploy/consumer-rules.pro", work / "kept.pro") for word in ("--pg-conf", file)]
    java = Path(shutil.which("javac") or "/").resolve().parents[1]
    given = [word for library in (java, *libraries) for word in ("--lib", library)]
    out = work / "minified.jar"
    run("java", QUICK, "-cp", jar("r8"), "com.android.tools.r8.R8", "--classfile", "--release", *rules, *given, "--output", out, *inputs)
    return out


def test(fixtures: Path, names: list[str], minified: bool, on_arm: bool) -> int:
    """JUnit's exit code; it prints its report.

    Raises:
        BuildError: a tool is missing, or the sources do not compile.
    """
    tests = names or [".".join(path.relative_to(APP / TESTS).with_suffix("").parts) for path in (APP / TESTS).rglob("*Test.java")]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        classes = runtime_classes(work / "runtimes")
        around = [*map(jar, JUNIT), jar("android-all")]  # its org.json is Android's own
        javac(work / "classes", [*classes, *around], LIBRARY, DEMO, TESTS)
        path = [work / "classes", *classes]
        if minified:
            path = [minify([pack(work / "classes", work / "classes.jar"), *classes], around, work)]
        vm = (arm64 if on_arm else here)(work)
        build_libraries(vm.machine, vm.libraries)
        return vm.run([*path, *around], {"qn.fixtures": fixtures, "java.io.tmpdir": work}, tests)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fixtures", type=Path)
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--minified", action="store_true")
    parser.add_argument("--arm64", action="store_true")
    given = parser.parse_intermixed_args()
    try:
        raise SystemExit(test(given.fixtures.resolve(), given.tests, given.minified, given.arm64))
    except BuildError as error:
        fail(error)


if __name__ == "__main__":
    main()
