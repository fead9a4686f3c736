"""examples/deploy, which the pages show: each file is run, and gives what the golden vectors say; what needs a phone is compiled."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from qn_deploy.exporters.compiler import find_compiler
from qn_deploy.exporters.to_executorch.build import build_backend, find_package, package_flags

ROOT = Path(__file__).parents[1]
FILES = ROOT / "examples/deploy"
TOOLS = ROOT / "android_demo/tools"
# As docs/how-to/deploy-cpp.md tells: kernels and backends register themselves.
LINKED = ("-lexecutorch", "-lexecutorch_kernels_optimized", "-lexecutorch_kernels_quantized", "-lexecutorch_backend_xnnpack")
pytestmark = pytest.mark.slow


def run(*command: object, folder: Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with every form, its stock .pte, and an input."""
    folder = tmp_path_factory.mktemp("deploy")
    command = Path(sys.executable).with_name("qn-deploy")
    run(command, "export", model.path, "--shell", "--out", folder / "build", folder=folder)
    run(command, "unpack", folder / "build/model.stock.qnz", "--out", folder / "stock.pte", folder=folder)
    image = load_file(folder / "build/golden.safetensors")["input/0"]
    np.save(folder / "images.npy", image)
    image[:1].tofile(folder / "image.bin")
    return folder


def expected(files: Path, exporter: str) -> np.ndarray:
    scores: np.ndarray = load_file(files / "build/golden.safetensors")[f"reference/{exporter}/0"]
    return scores


@pytest.mark.parametrize(
    ("script", "source", "exporter", "output"),
    [
        ("run_onnx.py", "build/model.onnx", "onnx", "output.npy"),
        ("run_shell.py", "build", "onnx", "output.npy"),
        ("run_stock.py", "stock.pte", "executorch", "output0.npy"),
        ("run_tables.py", "build/model.pte", "executorch", "output0.npy"),
    ],
)
def test_python(files: Path, tmp_path: Path, script: str, source: str, exporter: str, output: str) -> None:
    run(sys.executable, FILES / script, files / source, files / "images.npy", folder=tmp_path)
    assert np.array_equal(np.load(tmp_path / output), expected(files, exporter))


@pytest.fixture(scope="module")
def tools() -> ModuleType:
    """The module that fetches the runtimes' Android libraries; onnxruntime's headers lie in one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        if reason := importlib.import_module("toolchain").missing(["mvn", "npm", "javac"]):
            pytest.skip(reason)
        return importlib.import_module("runtimes")


def printed(text: str) -> np.ndarray:
    return np.array([float(line) for line in text.split()], np.float32)


def test_cpp_onnxruntime(files: Path, tools: ModuleType, tmp_path: Path) -> None:
    import onnxruntime

    with zipfile.ZipFile(tools.runtimes() / "aars/onnxruntime.aar") as aar:
        aar.extractall(tmp_path, [name for name in aar.namelist() if name.startswith("headers/")])
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    shutil.copy(library, tmp_path / "libonnxruntime.so.1")  # the name that the program asks for
    linked = (tmp_path / "libonnxruntime.so.1", f"-Wl,-rpath,{tmp_path}")
    run(*find_compiler(), "-std=c++17", FILES / "run_onnx.cpp", "-I", tmp_path / "headers", *linked, "-o", "run_onnx", folder=tmp_path)
    found = printed(run(tmp_path / "run_onnx", files / "build/model.onnx", files / "image.bin", folder=tmp_path))
    assert np.array_equal(found, expected(files, "onnx")[0])


@pytest.mark.parametrize("form", ["stock", "tables"])
def test_cpp_executorch(files: Path, tmp_path: Path, form: str) -> None:
    package = find_package()
    backend = [] if form == "stock" else [build_backend()]
    libraries = (f"-L{package / 'lib'}", f"-Wl,-rpath,{package / 'lib'}", "-Wl,--no-as-needed", *backend, *LINKED)
    run(*find_compiler(), *package_flags(package), FILES / "run_pte.cpp", *libraries, "-o", "run_pte", folder=tmp_path)
    program = files / ("stock.pte" if form == "stock" else "build/model.pte")
    found = printed(run(tmp_path / "run_pte", program, files / "image.bin", folder=tmp_path))
    assert np.array_equal(found, expected(files, "executorch")[0])


@pytest.fixture(scope="module")
def classes(tools: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Our library's classes with its Kotlin extensions, and the jars that it was compiled against."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        apk, jvm, toolchain = (importlib.import_module(name) for name in ("apk", "jvm", "toolchain"))
    work = tmp_path_factory.mktemp("classes")
    library = apk._library(work)
    return work, [library, *jvm.runtime_classes(work / "runtimes"), toolchain.jar("android-all"), toolchain.jar("kotlin-stdlib")]


def test_java_compiles(classes: tuple[Path, list[Path]], tmp_path: Path) -> None:
    path = ":".join(map(str, classes[1]))
    run("javac", "--release", "11", "-Xlint:-options", "-cp", path, "-d", tmp_path, *sorted(FILES.glob("*.java")), folder=tmp_path)
    assert {"LibraryExample.class", "OnnxExample.class", "ExecuTorchExample.class"} == {file.name for file in tmp_path.iterdir()}


def test_kotlin_compiles(classes: tuple[Path, list[Path]], tools: ModuleType, tmp_path: Path) -> None:
    toolchain = sys.modules["toolchain"]
    compiler = ":".join(str(jar) for jar in toolchain.packages().glob("*.jar") if "kotlin" in jar.name or "annotations-13" in jar.name)
    path = ":".join(map(str, classes[1]))
    options = ("-no-stdlib", "-no-reflect", "-jvm-target", "11", "-cp", path, "-d", tmp_path)
    run("java", "-cp", compiler, "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", *options, *sorted(FILES.glob("*.kt")), folder=tmp_path)
    names = {file.name for file in tmp_path.glob("*.class")}
    assert {"LibraryExampleKt.class", "OnnxClassifier.class", "ExecuTorchClassifier.class"} <= names


def test_the_pages_show_every_file() -> None:
    shown = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    for path in FILES.iterdir():
        assert path.is_dir() or f'"examples/deploy/{path.name}"' in shown, path.name
    assert all(word in shown for word in LINKED)
