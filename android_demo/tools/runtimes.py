"""The runtimes as Android libraries: those that npm packages of other projects carry, for tests and for `make apk AARS=`.

    python android_demo/tools/runtimes.py FOLDER

The official AARs are on Google's and Maven's servers; these are third-party builds of the same sources (onnxruntime 1.29, ExecuTorch
1.x), pinned by hash in npm.sha256. An app that you ship takes the official ones.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from toolchain import TOOLS, BuildError, cache_folder, fail, npm_packages, packages

ORT, EXECUTORCH = "com.github.asus4.onnxruntime", "react-native-executorch"
ORT_AAR = "package/Plugins/Android/onnxruntime.aar"
CLASSES = "package/android/libs/classes.jar"
LIBRARIES = "package/third-party/android/libs/executorch/"  # ABI/libexecutorch.so
HEADERS = "package/third-party/include/"


def runtimes() -> Path:
    """A folder with `aars/` (libraries and the jars that they need) and `include/` (ExecuTorch's headers), unpacked once into the cache.

    Raises:
        BuildError: a package can't be fetched or is not the pinned one.
    """
    folder = cache_folder() / f"runtimes-{_version()}"
    if not folder.exists():
        archives, jars = npm_packages(), packages()
        with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
            aars = Path(name) / "runtimes/aars"
            aars.mkdir(parents=True)
            with tarfile.open(archives[ORT]) as package:
                (aars / "onnxruntime.aar").write_bytes(_read(package, ORT_AAR))
            with tarfile.open(archives[EXECUTORCH]) as package:
                _write_executorch(package, aars / "executorch.aar")
                for member, path in _files(package, HEADERS):
                    target = aars.parent / "include" / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(_read(package, member))
            for needed in (*jars.glob("fbjni-*.aar"), *jars.glob("nativeloader-*.jar")):
                shutil.copy(needed, aars)
            aars.parent.replace(folder)
    return folder


def _write_executorch(package: tarfile.TarFile, target: Path) -> None:
    """An AAR as the official one is laid out: classes.jar and jni/ABI/*.so."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as aar:
        aar.writestr("classes.jar", _read(package, CLASSES))
        for member, path in _files(package, LIBRARIES):
            aar.writestr(f"jni/{path}", _read(package, member))


def _files(package: tarfile.TarFile, folder: str) -> Iterator[tuple[str, str]]:
    """Names of the regular files below a folder, and their paths in it."""
    for member in package.getmembers():
        if member.isfile() and member.name.startswith(folder) and ".." not in member.name:
            yield member.name, member.name.removeprefix(folder)


def _read(package: tarfile.TarFile, name: str) -> bytes:
    file = package.extractfile(name)
    if file is None:
        raise BuildError(f"a package of npm.sha256 has no {name}")
    return file.read()


def _version() -> str:
    pins = (TOOLS / "npm.sha256").read_text().split()
    return "-".join(digest[:8] for digest in pins[::2])


def main() -> None:
    """The command line."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        shutil.copytree(runtimes() / "aars", sys.argv[1], dirs_exist_ok=True)
    except BuildError as error:
        fail(error)


if __name__ == "__main__":
    main()
