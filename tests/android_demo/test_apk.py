"""The APK as `make apk` builds it, with a small model in it: what is in it, and that Android's own tools take it."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qn_deploy.android import bundle

APP = Path(__file__).parents[2] / "android_demo"
MODEL = "assets/models/small"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toolchain() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(APP / "tools"))
        module = importlib.import_module("toolchain")
    if reason := module.missing(["javac", "mvn", "aapt2", "zipalign", "apksigner"]):
        pytest.skip(reason)
    return module


@pytest.fixture(scope="module")
def app(toolchain: ModuleType, build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with a model."""
    ignored = shutil.ignore_patterns("assets", "__pycache__", "build")
    folder = shutil.copytree(APP, tmp_path_factory.mktemp("apk") / "android_demo", ignore=ignored)
    bundle(build.folder, folder, "small")
    return folder


def build_apk(app: Path, out: Path, *options: str | Path) -> None:
    done = subprocess.run([sys.executable, app / "tools/apk.py", "--out", out, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def apk(app: Path) -> Path:
    build_apk(app, app / "demo.apk")
    return app / "demo.apk"


def said(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def classes(dex: bytes) -> set[str]:
    """The classes that a dex file defines, by the tables of its header."""
    strings, types, defined = struct.unpack_from("<I", dex, 60)[0], struct.unpack_from("<I", dex, 68)[0], struct.unpack_from("<2I", dex, 96)
    names = set()
    for number in range(defined[0]):
        (kind,) = struct.unpack_from("<I", dex, defined[1] + 32 * number)
        (string,) = struct.unpack_from("<I", dex, types + 4 * kind)
        (at,) = struct.unpack_from("<I", dex, strings + 4 * string)
        begin = at + 1  # the length of these names takes one byte
        names.add(dex[begin : dex.index(b"\0", begin)].decode())
    return names


def test_the_signature_holds_and_finds_damage(apk: Path, tmp_path: Path) -> None:
    assert "Verified using v2 scheme (APK Signature Scheme v2): true" in said(
        "apksigner", "verify", "--verbose", "--min-sdk-version", "24", apk
    )
    said("zipalign", "-c", "-p", "4", apk)
    damaged = bytearray(apk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.apk").write_bytes(damaged)
    done = subprocess.run(["apksigner", "verify", "--min-sdk-version", "24", tmp_path / "damaged.apk"], capture_output=True, check=False)
    assert done.returncode != 0


def test_the_manifest(apk: Path) -> None:
    badging = said("aapt2", "dump", "badging", apk)
    assert "package: name='qndeploy.demo' versionCode='1' versionName='0.1.0'" in badging
    assert "sdkVersion:'24'" in badging and "targetSdkVersion:'34'" in badging
    assert "launchable-activity: name='qndeploy.demo.MainActivity'" in badging
    assert "uses-permission" not in badging and said("aapt2", "dump", "permissions", apk).split() == ["package:", "qndeploy.demo"]


def test_the_dex_holds_app_and_java_api(apk: Path) -> None:
    with zipfile.ZipFile(apk) as archive:
        found = classes(archive.read("classes.dex"))
    ours = {name for name in found if name.startswith("Lqndeploy/")}
    for module, name in (("demo", "MainActivity"), ("core", "TableBlob"), ("ort", "OrtProgram"), ("executorch", "ExecuTorchProgram")):
        assert f"Lqndeploy/{module}/{name};" in ours
    assert "Lai/onnxruntime/OrtSession;" in found
    assert not [name for name in found if name.startswith(("Lorg/", "Landroid/", "Ljava/"))]  # no stand-in, no framework, no JUnit


def test_the_assets_are_the_build(apk: Path, build: Any) -> None:
    with zipfile.ZipFile(apk) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name.startswith("assets/")}
    index = json.loads(files["assets/models/index.json"])["models"]["small"]
    assert index["manifest_sha256"] == hashlib.sha256(files[f"{MODEL}/manifest.json"]).hexdigest()
    assert {f"{MODEL}/{name}" for name in (*index["files"], "manifest.json", "golden.safetensors")} | {"assets/models/index.json"} == set(
        files
    )
    for name in index["files"]:
        assert files[f"{MODEL}/{name}"] == (build.folder / name).read_bytes()
    assert apk.stat().st_size < 1 << 20


def test_aars_bring_their_classes_and_the_libraries_of_our_abis(app: Path, toolchain: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "aars"
    folder.mkdir()
    with zipfile.ZipFile(toolchain.jar("onnxruntime")) as package, zipfile.ZipFile(tmp_path / "classes.jar", "w") as jar:
        for name in package.namelist():
            if name.endswith(".class") and "platform" not in name:
                jar.writestr(name, package.read(name))
    with zipfile.ZipFile(folder / "onnxruntime-android.aar", "w") as aar:
        aar.write(tmp_path / "classes.jar", "classes.jar")
        for abi in ("arm64-v8a", "x86_64", "armeabi-v7a"):
            aar.writestr(f"jni/{abi}/libonnxruntime.so", os.urandom(1 << 10))
    build_apk(app, tmp_path / "full.apk", "--aars", folder)
    with zipfile.ZipFile(tmp_path / "full.apk") as archive:
        assert sorted(name for name in archive.namelist() if name.startswith("lib/")) == [
            "lib/arm64-v8a/libonnxruntime.so",
            "lib/x86_64/libonnxruntime.so",
        ]
        assert "Lai/onnxruntime/OrtSession;" in classes(archive.read("classes.dex"))


def test_a_package_that_differs_from_its_pin_is_refused(toolchain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file where Maven would put the real one."""

    def run(*command: str | Path) -> None:
        Path(str(command[-1]).removeprefix("-DoutputDirectory="), "junit-4.13.2.jar").write_bytes(b"junit")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(toolchain, "run", run)
    with pytest.raises(toolchain.BuildError, match=r"not those that packages\.sha256 pins"):
        toolchain.packages.__wrapped__()
    assert not list((tmp_path / "qn-deploy/android").iterdir())
