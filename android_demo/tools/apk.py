"""Builds the app and the library's AAR without Gradle and the Android SDK: javac, kotlinc, R8, aapt2, zipalign, apksigner.

    python android_demo/tools/apk.py [--aars FOLDER] [--out build/qn-deploy-demo.apk]

FOLDER holds the AARs and jars of the runtimes and of what they need: their classes and native libraries go into one APK for each
processor, NAME-arm64-v8a.apk and NAME-x86_64.apk. Without it the APK holds all of the app and nothing of the runtimes: it installs and
starts, and says of each program which library is missing. The AAR lies beside it: qndeploy.aar.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import tempfile
import zipfile
from pathlib import Path

from jvm import LIBRARY, javac, pack, runtime_classes
from toolchain import APP, QUICK, BuildError, cache_folder, fail, jar, missing, packages, run, sources

PACKAGE = "qndeploy.demo"
MIN_SDK, TARGET_SDK = 24, 36
ABIS = ("arm64-v8a", "x86_64")
IN_PLACE = ("onnx", "qnz", "pte", "safetensors")  # kept uncompressed: mapped where they lie in the APK
PAGE = 1 << 14  # of newer devices; a library that is laid out for less does not load there
RULES = "-keepattributes SourceFile,LineNumberTable\n"
AAR_METADATA = "aarFormatVersion=1.0\naarMetadataVersion=1.0\nminCompileSdk=24\n"
PASSWORD = "android"  # of Android's debug keys, everywhere


def build(out: Path, aars: list[Path]) -> list[Path]:
    """Writes the signed APKs and the AAR beside them, whose paths it returns.

    Raises:
        BuildError: a tool is missing or failed, or a native library can't be loaded on every device.
    """
    if reason := missing(["javac", "mvn", "npm", "aapt2", "zipalign", "apksigner"]):
        raise BuildError(reason)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        libraries = _native_libraries(aars)
        library = _library(work)
        base = resources(work, APP / "app/src/main/assets")
        runtimes = [_unpacked(aar, work) for aar in aars]
        dex = _dex(_app(library, work), library, runtimes, work)
        written = [_aar(library, out.with_name("qndeploy.aar"))]
        for abi in ABIS if libraries else ("",):
            unsigned = work / f"unsigned{abi}.apk"
            shutil.copy(base, unsigned)
            with zipfile.ZipFile(unsigned, "a", zipfile.ZIP_DEFLATED) as apk:
                apk.write(dex, "classes.dex")
                for library_name, data in libraries.get(abi, {}).items():
                    apk.writestr(f"lib/{abi}/{library_name}", data)
            written.append(_signed(unsigned, out.with_name(f"{out.stem}-{abi}.apk") if abi else out, work))
    return written


def resources(work: Path, assets: Path) -> Path:
    """An APK of the manifest, resources and assets; the class R goes to work/gen, the classes that they name to work/named.pro."""
    main = APP / "app/src/main"
    manifest = work / "AndroidManifest.xml"  # Gradle adds these two from build.gradle.kts
    text = (main / "AndroidManifest.xml").read_text().replace("<manifest ", f'<manifest package="{PACKAGE}" ', 1)
    manifest.write_text(text.replace("<application", '<application android:extractNativeLibs="true"', 1))
    run("aapt2", "compile", "--dir", main / "res", "-o", work / "res.zip")
    sdk = ("--min-sdk-version", str(MIN_SDK), "--target-sdk-version", str(TARGET_SDK), "--version-code", "1", "--version-name", "0.1.0")
    stored = [word for extension in IN_PLACE for word in ("-0", f".{extension}")]
    with_assets = ("-A", assets) if assets.is_dir() else ()
    command = ("aapt2", "link", "-I", jar("android-all"), "--manifest", manifest, "--java", work / "gen", *sdk, *stored, *with_assets)
    run(*command, "--proguard", work / "named.pro", "-o", work / "base.apk", work / "res.zip")
    return work / "base.apk"


def _library(work: Path) -> Path:
    """A jar of the library's classes, Kotlin's extensions among them."""
    classes, path = work / "library", [*runtime_classes(work / "compiled-against"), jar("android-all")]
    javac(classes, path, LIBRARY)
    compiler = ":".join(str(jar) for jar in packages().glob("*.jar") if "kotlin" in jar.name or jar.name.startswith("annotations-13"))
    kotlin = work / "kotlin"
    # No checks of arguments: they would need Kotlin's library, which an app in Java has not.
    options = (
        "-no-stdlib",
        "-no-reflect",
        "-Xno-param-assertions",
        "-Xno-call-assertions",
        "-jvm-target",
        "11",
        "-module-name",
        "qndeploy",
    )
    given = ":".join(map(str, (classes, jar("kotlin-stdlib"), jar("android-all"))))
    run("java", QUICK, "-cp", compiler, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", *options, "-cp", given, "-d", kotlin,
        APP / "qndeploy/src/main/kotlin")  # fmt: skip
    shutil.copytree(kotlin, classes, dirs_exist_ok=True)
    return pack(classes, work / "library.jar")


def _aar(library: Path, out: Path) -> Path:
    files = {
        "AndroidManifest.xml": (APP / "qndeploy/src/main/AndroidManifest.xml").read_text()
        .replace("<manifest />", f'<manifest package="qndeploy"><uses-sdk xmlns:android="http://schemas.android.com/apk/res/android" '
                                 f'android:minSdkVersion="{MIN_SDK}" /></manifest>').encode(),
        "classes.jar": library.read_bytes(),
        "proguard.txt": (APP / "qndeploy/consumer-rules.pro").read_bytes(),
        "R.txt": b"",
        "META-INF/com/android/build/gradle/aar-metadata.properties": AAR_METADATA.encode(),
    }  # fmt: skip
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as aar:
        for name, data in files.items():
            aar.writestr(zipfile.ZipInfo(name), data)
    return out


def _app(library: Path, work: Path) -> Path:
    """A jar of the app's own classes."""
    javac(work / "app", [library, jar("android-all")], *sources("app/src/main"), *(work / "gen").rglob("*.java"))
    return pack(work / "app", work / "app.jar")


def _dex(app: Path, library: Path, runtimes: list[Path], work: Path) -> Path:
    """classes.dex, shrunk by R8 in full mode: by the rules of manifest and layouts, of the library and of each AAR."""
    (work / "app.pro").write_text(RULES)
    rules = [work / "app.pro", work / "named.pro", APP / "qndeploy/consumer-rules.pro", *work.glob("*-proguard.txt")]
    given = [word for file in rules for word in ("--pg-conf", file)]
    java = Path(shutil.which("javac") or "/").resolve().parents[1]  # the framework's jar holds no java.*
    platform = ("--lib", java, "--lib", jar("android-all"))
    (work / "dex").mkdir()
    command = ("com.android.tools.r8.R8", "--release", "--min-api", str(MIN_SDK), *platform, *given)
    run("java", QUICK, "-Xmx2g", "-cp", jar("r8"), *command, "--output", work / "dex", app, library, *runtimes)
    return work / "dex/classes.dex"


def _unpacked(aar: Path, work: Path) -> Path:
    """The classes of an AAR or a jar; the rules of an AAR go to work/NAME-proguard.txt."""
    if aar.suffix == ".jar":
        return aar
    with zipfile.ZipFile(aar) as archive:
        classes = work / f"{aar.stem}-classes.jar"
        classes.write_bytes(archive.read("classes.jar"))
        if "proguard.txt" in archive.namelist():
            (work / f"{aar.stem}-proguard.txt").write_bytes(archive.read("proguard.txt"))
    return classes


def _native_libraries(aars: list[Path]) -> dict[str, dict[str, bytes]]:
    """For each processor of ABIS the native libraries of AARs by name; of two of one name the first."""
    found: dict[str, dict[str, bytes]] = {}
    for aar in aars:
        with zipfile.ZipFile(aar) as archive:
            for name in archive.namelist():
                folder, *rest = name.split("/")
                if folder == "jni" and len(rest) == 2 and rest[1].endswith(".so") and rest[0] in ABIS:
                    data = archive.read(name)
                    if (page := _page(data)) < PAGE:
                        raise BuildError(
                            f"{name} of {aar.name} is laid out for pages of {page} bytes and does not load where they have {PAGE}; "
                            "take a newer release"
                        )
                    found.setdefault(rest[0], {}).setdefault(rest[1], data)
    return found


def _page(library: bytes) -> int:
    """The smallest alignment of a segment that is loaded, by the program headers of a 64-bit ELF file."""
    if library[:5] != b"\x7fELF\x02":
        raise BuildError("a native library of the AARs is no 64-bit ELF file")
    (start,), (size, count) = struct.unpack_from("<Q", library, 32), struct.unpack_from("<2H", library, 54)
    headers = [struct.unpack_from("<2I6Q", library, start + size * i) for i in range(count)]
    return min(alignment for kind, _, _, _, _, _, _, alignment in headers if kind == 1)


def _signed(unsigned: Path, out: Path, work: Path) -> Path:
    aligned, signed = work / "aligned.apk", work / "signed.apk"
    run("zipalign", "-f", "-p", "4", unsigned, aligned)
    signing = ("--ks", _debug_key(), "--ks-pass", f"pass:{PASSWORD}", "--min-sdk-version", MIN_SDK, "--v4-signing-enabled", "false")
    run("apksigner", "sign", *map(str, signing), "--out", signed, aligned)
    out.write_bytes(signed.read_bytes())
    return out


def _debug_key() -> Path:
    """A key of this machine only, made once."""
    key = cache_folder() / "debug.p12"
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True)
        names = ("-alias", "androiddebugkey", "-dname", "CN=Android Debug,O=Android,C=US", "-storepass", PASSWORD, "-keypass", PASSWORD)
        kind = ("-storetype", "PKCS12", "-keyalg", "RSA", "-keysize", "2048", "-validity", "10000")
        run("keytool", "-genkeypair", "-keystore", key, *kind, *names)
    return key


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aars", type=Path, metavar="FOLDER", help="the AARs and jars of the runtimes")
    parser.add_argument("--out", type=Path, default=Path("build/qn-deploy-demo.apk"))
    given = parser.parse_args()
    aars = sorted(file.resolve() for file in given.aars.iterdir() if file.suffix in (".aar", ".jar")) if given.aars else []
    try:
        if given.aars and not aars:
            raise BuildError(f"{given.aars} holds no .aar and no .jar")
        for file in build(given.out, aars):
            print(f"{file}: {file.stat().st_size:,} bytes")
    except BuildError as error:
        fail(error)
    print("signed with a debug key; next: qn-deploy android build/demo/build --name digits --install APK --check")
    if not aars:
        print("the APK holds no runtime: they come with --aars FOLDER, or with Gradle (android_demo/README.md)")


if __name__ == "__main__":
    main()
