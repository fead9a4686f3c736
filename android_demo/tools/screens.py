"""Runs the app on Android 15's own framework (Robolectric, native graphics), with the runtimes' Android libraries over the shim.

    python android_demo/tools/screens.py ASSETS [FOUND]

ASSETS has a folder of assets for each test class of screen_tests: good/ for GoodTest. Pictures of the screens go to FOUND (build/screens)
and are compared with those in screen_tests/screens/; one that changed on purpose is looked at, and copied there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from apk import PACKAGE, resources
from jvm import LIBRARY, class_jars, here, javac, runtime_classes
from toolchain import APP, BuildError, fail, packages

TESTS = "screen_tests/java"
STYLES = "jvm_tests/java/qndeploy/demo/Styles.java"
NOT_RUN = ("android-all-14", "android-all-instrumented", "r8-", "kotlin-", "kotlinx-")


def test(assets: Path, found: Path) -> int:
    """The worst exit code of JUnit, which prints its reports.

    Raises:
        BuildError: a tool is missing, or the sources do not compile.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        classes = runtime_classes(work / "runtimes")
        around = [*classes, *_test_jars(work / "aars")]
        framework = next(packages().glob("android-all-1*.jar"))
        codes = []
        vm = here(work)
        for folder in sorted(assets.iterdir()):
            base = resources(work, folder)
            if not codes:
                javac(work / "classes", [*around, framework], LIBRARY, "app/src/main", TESTS, STYLES, *(work / "gen").rglob("*.java"))
            config = work / "classes/com/android/tools/test_config.properties"
            config.parent.mkdir(parents=True, exist_ok=True)
            places = {
                "android_merged_manifest": work / "AndroidManifest.xml",
                "android_resource_apk": base,
                "android_merged_assets": folder,
            }
            config.write_text("".join(f"{key}={value}\n" for key, value in {**places, "android_custom_package": PACKAGE}.items()))
            properties = {
                "robolectric.offline": "true",
                "robolectric.dependency.dir": packages(),
                "qn.screens": APP / "screen_tests/screens",
                "qn.screens.found": found,
                "java.io.tmpdir": work,
            }
            codes.append(vm.run([work / "classes", *around, framework], properties, [f"{PACKAGE}.{folder.name.title()}Test"]))
        return max(codes)


def _test_jars(work: Path) -> list[Path]:
    """Robolectric and what it needs; the classes of its AARs are unpacked."""
    jars = [path for path in sorted(packages().glob("*.jar")) if not path.name.startswith(NOT_RUN)]
    return jars + class_jars([path for path in packages().glob("*.aar") if not path.name.startswith("fbjni")], work)


def main() -> None:
    """The command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    try:
        sys.exit(test(Path(sys.argv[1]).resolve(), Path(*sys.argv[2:] or ["build/screens"]).resolve()))
    except BuildError as error:
        fail(error)


if __name__ == "__main__":
    main()
