"""Compiles core and engines with their JUnit tests and runs these on this machine's Java.

    python android_demo/tools/jvm.py FIXTURES [TEST...]

FIXTURES is the folder that runtime_tests/test_android.py fills; without a TEST all run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from toolchain import APP, BuildError, fail, jar, run, sources

TESTS = APP / "jvm_tests/java"
MAIN = ("core/src/main", "engine-ort/src/main", "engine-executorch/src/main")


def test(fixtures: Path, names: list[str]) -> int:
    """JUnit's exit code; it prints its report.

    Raises:
        BuildError: a tool is missing, or the sources do not compile.
    """
    tests = names or [".".join(path.relative_to(TESTS).with_suffix("").parts) for path in TESTS.rglob("*Test.java")]
    jars = [jar(name) for name in ("onnxruntime", "junit", "hamcrest-core")]
    plain = ":".join(map(str, [*jars, jar("json")]))  # no android.* to compile with
    with tempfile.TemporaryDirectory() as classes:
        run("javac", "-nowarn", "-Xlint:-options", "--release", "8", "-cp", plain, "-d", classes, *sources(*MAIN, TESTS))
        child = APP / "jvm_tests/executorch_child.py"
        properties = (
            f"-Dqn.fixtures={fixtures}",
            f"-Dqn.python={sys.executable}",
            f"-Dqn.executorch={child}",
            f"-Djava.io.tmpdir={classes}",
        )
        path = ":".join(map(str, [classes, *jars, jar("android-all")]))  # its org.json is Android's own
        command = ("java", "-Xmx1g", *properties, "-cp", path, "org.junit.runner.JUnitCore", *tests)
        return subprocess.run(command, check=False).returncode


def main() -> None:
    """The command line."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        sys.exit(test(Path(sys.argv[1]).resolve(), sys.argv[2:]))
    except BuildError as error:
        fail(error)


if __name__ == "__main__":
    main()
