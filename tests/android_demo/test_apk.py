"""The APK as `make apk` builds it, with a small model in it: what is in it, and that Android's own tools take it."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
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
MAX_APK, MAX_PAYLOAD = 300_000, 100_000  # without runtimes; without models too
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toolchain() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(APP / "tools"))
        module = importlib.import_module("toolchain")
    if reason := module.missing(["javac", "mvn", "npm", "aapt2", "zipalign", "apksigner"]):
        pytest.skip(reason)
    return module


@pytest.fixture(scope="module")
def app(toolchain: ModuleType, build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with a model."""
    ignored = shutil.ignore_patterns("assets", "__pycache__", "build", "screens")
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
    assert "sdkVersion:'24'" in badging and "targetSdkVersion:'36'" in badging
    assert "launchable-activity: name='qndeploy.demo.MainActivity'" in badging
    assert "uses-permission" not in badging and said("aapt2", "dump", "permissions", apk).split() == ["package:", "qndeploy.demo"]


def test_the_dex_holds_the_app_shrunk_and_no_runtime(apk: Path) -> None:
    with zipfile.ZipFile(apk) as archive:
        found = classes(archive.read("classes.dex"))
    assert {
        "Lqndeploy/demo/MainActivity;",
        "Lqndeploy/demo/DigitView;",
        "Lqndeploy/demo/BarsView;",
    } <= found  # as manifest and layout name them
    assert "Lqndeploy/TableBlob;" not in found  # renamed
    assert not [name for name in found if name.startswith(("Lai/", "Lorg/", "Landroid/", "Ljava/", "Lkotlin/"))]


def test_the_aar_is_a_library(apk: Path) -> None:
    with zipfile.ZipFile(apk.with_name("qndeploy.aar")) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert {"AndroidManifest.xml", "classes.jar", "proguard.txt", "R.txt"} <= set(files)
    assert b'minSdkVersion="24"' in files["AndroidManifest.xml"] and b"-keep class ai.onnxruntime.**" in files["proguard.txt"]
    with zipfile.ZipFile(io.BytesIO(files["classes.jar"])) as jar:
        names = {name for name in jar.namelist() if name.endswith(".class")}
    assert {"qndeploy/QnModel.class", "qndeploy/ExtensionsKt.class"} <= names and all(name.startswith("qndeploy/") for name in names)


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
    stored = {info.filename: info.compress_type for info in zipfile.ZipFile(apk).infolist()}
    assert all(stored[f"{MODEL}/{name}"] == zipfile.ZIP_STORED for name in (*index["files"], "golden.safetensors"))  # mapped in place
    assert apk.stat().st_size <= MAX_APK
    code = sum(info.compress_size for info in zipfile.ZipFile(apk).infolist() if not info.filename.startswith(("assets/", "META-INF/")))
    assert code <= MAX_PAYLOAD


def test_aars_bring_their_classes_and_libraries(app: Path, toolchain: ModuleType, tmp_path: Path) -> None:
    """The real ones, in a folder given relative to where the build is started: an APK for each processor."""
    tools = app / "tools"
    subprocess.run([sys.executable, tools / "runtimes.py", tmp_path / "aars"], check=True)
    command = [sys.executable, tools / "apk.py", "--out", "full.apk", "--aars", "aars"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "full.apk").exists()
    libraries = ("libc++_shared.so", "libexecutorch.so", "libfbjni.so", "libonnxruntime.so", "libonnxruntime4j_jni.so")
    for abi in ("arm64-v8a", "x86_64"):
        with zipfile.ZipFile(tmp_path / f"full-{abi}.apk") as archive:
            assert sorted(name for name in archive.namelist() if name.startswith("lib/")) == [f"lib/{abi}/{name}" for name in libraries]
            found = classes(archive.read("classes.dex"))
        assert {"Lai/onnxruntime/OrtSession;", "Lorg/pytorch/executorch/Module;", "Lcom/facebook/jni/HybridData;"} <= found


def test_libraries_for_small_pages_are_refused(app: Path, toolchain: ModuleType, tmp_path: Path) -> None:
    """A 64-bit ELF header and one segment that is loaded, aligned to 4 KB."""
    header = b"\x7fELF\x02\x01\x01".ljust(32, b"\0") + struct.pack("<QQIHHH", 64, 0, 0, 64, 56, 1)
    library = header.ljust(64, b"\0") + struct.pack("<2I6Q", 1, 5, 0, 0, 0, 0, 0, 4096)
    (tmp_path / "aars").mkdir()
    with zipfile.ZipFile(tmp_path / "aars/old.aar", "w") as aar, zipfile.ZipFile(tmp_path / "classes.jar", "w"):
        aar.write(tmp_path / "classes.jar", "classes.jar")
        aar.writestr("jni/arm64-v8a/libold.so", library)
    command = [sys.executable, app / "tools/apk.py", "--out", tmp_path / "old.apk", "--aars", tmp_path / "aars"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "jni/arm64-v8a/libold.so of old.aar is laid out for pages of 4096 bytes" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("*.apk"))


def test_a_package_that_differs_from_its_pin_is_refused(toolchain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file where Maven would put the real one."""

    def run(*command: str | Path) -> None:
        Path(str(command[-1]).removeprefix("-DoutputDirectory="), "junit-4.13.2.jar").write_bytes(b"junit")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(toolchain, "run", run)
    with pytest.raises(toolchain.BuildError, match=r"not those that packages\.sha256 pins"):
        toolchain.packages.__wrapped__()
    assert not list((tmp_path / "qn-deploy/android").iterdir())
