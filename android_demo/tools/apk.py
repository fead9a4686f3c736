"""Builds the app without Gradle and the Android SDK: javac, ProGuard, dx, aapt2, zipalign, apksigner.

    python android_demo/tools/apk.py [--aars FOLDER] [--out build/qn-deploy-demo.apk]

FOLDER holds the official AARs of the runtimes (and what they need): their classes and native libraries go into the APK. Without it the
APK holds all of the app, but of the runtimes only onnxruntime's Java classes: it installs and starts, and says of each program that the
runtime is missing.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import zipfile
from pathlib import Path

from toolchain import APP, BuildError, cache_folder, fail, jar, missing, run, sources

PACKAGE = "qndeploy.demo"
MIN_SDK, TARGET_SDK = 24, 34
ABIS = ("arm64-v8a", "x86_64")
MAIN = ("core/src/main", "engine-ort/src/main", "engine-executorch/src/main", "app/src/main")
STAND_IN = "jvm_tests/java/org"  # the signatures of org.pytorch.executorch; never packaged
DESKTOP_ONLY = "ai/onnxruntime/platform/"  # of onnxruntime's package for desktops; on Android another class has its place
KEEP = "-dontshrink -dontoptimize -dontobfuscate -keepattributes ** -dontwarn ai.onnxruntime.platform.**"
QUICK = "-XX:TieredStopAtLevel=1"  # for runs of seconds: the JVM's second compiler would take more time than it saves
PASSWORD = "android"  # of Android's debug keys, everywhere


def build(out: Path, aars: list[Path]) -> None:
    """Writes the signed APK.

    Raises:
        BuildError: a tool is missing or failed.
    """
    if reason := missing(["javac", "mvn", "aapt2", "zipalign", "apksigner"]):
        raise BuildError(reason)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        runtimes = [_classes(aar, work) for aar in aars] or [_java_only(jar("onnxruntime"), work)]
        base = _resources(work)
        # What AARs need only at compile time, annotations for the most part, is not there: that must not end the build.
        dex = _dex(_compile(work, runtimes), runtimes, work, "-ignorewarnings" if aars else "")
        with zipfile.ZipFile(base, "a") as apk:
            apk.write(dex, "classes.dex")
            for aar in aars:
                _add_libraries(apk, aar)
        aligned, signed = work / "aligned.apk", work / "signed.apk"
        run("zipalign", "-p", "4", base, aligned)
        signing = ("--ks", _debug_key(), "--ks-pass", f"pass:{PASSWORD}", "--min-sdk-version", MIN_SDK, "--v4-signing-enabled", "false")
        run("apksigner", "sign", *map(str, signing), "--out", signed, aligned)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(signed.read_bytes())


def _resources(work: Path) -> Path:
    """An APK of the manifest, resources and assets; the class R goes to work/gen."""
    main = APP / "app/src/main"
    manifest = work / "AndroidManifest.xml"  # Gradle takes the package from build.gradle.kts and wants none in the file
    manifest.write_text((main / "AndroidManifest.xml").read_text().replace("<manifest ", f'<manifest package="{PACKAGE}" ', 1))
    run("aapt2", "compile", "--dir", main / "res", "-o", work / "res.zip")
    sdk = ("--min-sdk-version", str(MIN_SDK), "--target-sdk-version", str(TARGET_SDK), "--version-code", "1", "--version-name", "0.1.0")
    assets = ("-A", main / "assets") if (main / "assets").is_dir() else ()
    command = ("aapt2", "link", "-I", jar("android-all"), "--manifest", manifest, "--java", work / "gen", *sdk, *assets)
    run(*command, "-o", work / "base.apk", work / "res.zip")
    return work / "base.apk"


def _compile(work: Path, runtimes: list[Path]) -> Path:
    """A jar of the app's classes, of Java 8."""
    stand_in, classes = work / "stand-in", work / "classes"
    javac = ("javac", f"-J{QUICK}", "-nowarn", "-Xlint:-options", "--release", "8")
    run(*javac, "-d", stand_in, *sources(STAND_IN))
    path = ":".join(map(str, [*runtimes, stand_in, jar("android-all")]))
    run(*javac, "-cp", path, "-d", classes, *sources(*MAIN), *(work / "gen").rglob("*.java"))
    result = work / "app.jar"
    with zipfile.ZipFile(result, "w") as archive:
        for file in sorted(classes.rglob("*.class")):
            archive.write(file, file.relative_to(classes))
    return result


def _dex(app: Path, runtimes: list[Path], work: Path, leniency: str) -> Path:
    """classes.dex; ProGuard rewrites lambdas for dx, and fails where a class asks for what neither Java nor Android 14 has."""
    proguard = ":".join(map(str, jar("android-all").parent.glob("*.jar")))
    inputs = " ".join(f"-injars {path}(!META-INF/**)" for path in [app, *runtimes])
    rules = work / "rules.pro"
    java = Path(shutil.which("javac") or "").resolve().parents[1] / "jmods"
    modules = " ".join(f"-libraryjars {java / name}.jmod(!**.jar;!module-info.class)" for name in ("java.base", "java.logging"))
    libraries = f"{modules} -libraryjars {jar('android-all')}(android/**,org/json/**) -libraryjars {work / 'stand-in'}"
    rules.write_text(f"{inputs}\n-outjars {work / 'java7.jar'}\n{libraries}\n-target 1.7\n{KEEP} {leniency}\n-keep class ** {{ *; }}\n")
    run("java", QUICK, "-cp", proguard, "proguard.ProGuard", f"@{rules}")
    run("java", QUICK, "-cp", jar("dalvik-dx"), "com.android.dx.command.Main", "--dex", f"--min-sdk-version={MIN_SDK}",
        f"--output={work / 'classes.dex'}", work / "java7.jar")  # fmt: skip
    return work / "classes.dex"


def _classes(aar: Path, work: Path) -> Path:
    """The classes of an AAR or a jar."""
    if aar.suffix == ".jar":
        return aar
    classes = work / f"{aar.stem}.jar"
    with zipfile.ZipFile(aar) as archive:
        classes.write_bytes(archive.read("classes.jar"))
    return classes


def _java_only(package: Path, work: Path) -> Path:
    """A jar without the native libraries in it."""
    result = work / package.name
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(result, "w") as target:
        for name in source.namelist():
            if name.endswith(".class") and not name.startswith(DESKTOP_ONLY):
                target.writestr(name, source.read(name))
    return result


def _add_libraries(apk: zipfile.ZipFile, aar: Path) -> None:
    with zipfile.ZipFile(aar) as archive:
        for name in archive.namelist():
            parts = name.split("/")
            if parts[0] == "jni" and parts[-1].endswith(".so") and parts[1] in ABIS and f"lib/{parts[1]}/{parts[-1]}" not in apk.namelist():
                apk.writestr(f"lib/{parts[1]}/{parts[-1]}", archive.read(name), zipfile.ZIP_DEFLATED)


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
    parser.add_argument("--aars", type=Path, metavar="FOLDER", help="the official AARs of onnxruntime-android and executorch-android")
    parser.add_argument("--out", type=Path, default=Path("build/qn-deploy-demo.apk"))
    arguments = parser.parse_args()
    aars = sorted([*arguments.aars.glob("*.aar"), *arguments.aars.glob("*.jar")]) if arguments.aars else []
    try:
        build(arguments.out, aars)
    except BuildError as error:
        fail(error)
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, signed with a debug key; next: adb install {arguments.out}")
    if not aars:
        print("it holds no native library: the runtimes come with --aars FOLDER, or with Gradle (android_demo/README.md)")


if __name__ == "__main__":
    main()
