"""The native part as an application builds it: CMake, both libraries, qn_runner; and its readers against hostile bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qn_deploy.exporters.kernels.build import FOLDER
from qn_deploy.exporters.to_executorch import build
from qn_deploy.exporters.to_executorch.pte import to_tables
from qn_deploy.exporters.to_executorch.runtime import load_program
from qn_deploy.weights.table_blob import MAGIC, DType

NATIVE = Path(build.__file__).parent / "native"
HERE = Path(__file__).parent
RUNS = 20_000  # of the fuzz target, in each test run


def tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on PATH (Debian, Ubuntu: apt-get install {package})")
    return found


def call(*command: str | Path, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CMake project's build folder. Its own flags make every warning an error."""
    folder = tmp_path_factory.mktemp("native")
    cmake = tool("cmake", "cmake")
    call(cmake, "-S", NATIVE, "-B", folder, f"-DEXECUTORCH={build.find_package()}", "-DCMAKE_BUILD_TYPE=Debug")
    call(cmake, "--build", folder, "--parallel", "2")
    return folder


@pytest.fixture
def model(lowered, tmp_path: Path) -> Path:
    (tmp_path / "model.pte").write_bytes(to_tables(lowered.stock, lowered.tables))
    (x,) = lowered.inputs
    (tmp_path / "inputs").write_bytes(f"float32 {' '.join(map(str, x.shape))}\n".encode() + x.numpy().tobytes())
    return tmp_path


def run(built: Path, folder: Path, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return call(built / "qn_runner", "model.pte", "inputs", "outputs", *options, cwd=folder, check=check)


def test_cmake_builds_both_libraries_and_the_runner(built: Path) -> None:
    assert (built / "libqn_xnnpack_backend.so").read_bytes().startswith(b"\x7fELF")
    assert (built / "libqn_xnnpack_backend.a").read_bytes().startswith(b"!<arch>")


def test_cmake_names_what_is_missing(tmp_path: Path) -> None:
    done = call(tool("cmake", "cmake"), "-S", NATIVE, "-B", tmp_path, "-DEXECUTORCH=/nowhere", check=False)
    assert done.returncode != 0
    assert "EXECUTORCH is '/nowhere', which has no include/executorch" in " ".join(done.stderr.split())


@pytest.mark.parametrize("mode", [(), ("--mmap",), ("--all-threads",)], ids=["file", "mmap", "all threads"])
def test_the_runner_computes_what_python_does(built: Path, model: Path, lowered, mode: tuple[str, ...]) -> None:
    figures = json.loads(run(built, model, "--runs", "3", *mode).stdout)
    head, values = (model / "outputs").read_bytes().split(b"\n", 1)
    (expected,) = load_program(model / "model.pte").run(lowered.inputs)
    assert (head, values) == (b"float32 1 48", expected.numpy().tobytes())
    assert figures["runs"] == 3
    assert 0 < figures["min_ms"] <= figures["median_ms"]
    assert figures["load_ms"] > 0
    assert 0 < figures["rss_before"] <= figures["rss_loaded"] <= figures["rss_load_peak"] <= figures["rss_peak"]


@pytest.mark.parametrize("lowered", [DType.INT8], indirect=True, ids=["int8"])
@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (b"", "can't run 'forward'"),
        (b"float32 1 8 9 9\n" + bytes(8 * 81 * 4), "can't run 'forward'"),
        (b"float32 1 8 7 7\n" + bytes(8 * 49 * 4 - 1), "inputs ends within 'float32 1 8 7 7'"),
        (b"float33 1\n" + bytes(4), "'float33 1' is no line of a dtype and sizes"),
        (b"float32 x\n" + bytes(4), "'float32 x' has a size that is no number"),
        (b"float32 2147483647 2147483647 2147483647\n", "is too large"),
        (b"float32 -1\n", "is too large"),
    ],
    ids=["none", "another shape", "cut off", "dtype", "no size", "overflow", "negative"],
)
def test_the_runner_refuses_wrong_inputs(built: Path, model: Path, inputs: bytes, reason: str) -> None:
    (model / "inputs").write_bytes(inputs)
    done = run(built, model, check=False)
    assert done.returncode == 1
    assert reason in done.stderr
    assert not (model / "outputs").exists()


@pytest.mark.parametrize("lowered", [DType.INT8], indirect=True, ids=["int8"])
def test_the_runner_refuses_damaged_programs_and_unknown_words(built: Path, model: Path) -> None:
    pte = (model / "model.pte").read_bytes()
    version = pte.index(MAGIC) + 16
    (model / "model.pte").write_bytes(pte[:version] + b"\x09" + pte[version + 1 :])
    done = run(built, model, check=False)
    assert (done.returncode, "can't load 'forward' of model.pte" in done.stderr) == (1, True)
    (model / "model.pte").write_bytes(b"hello " * 20)
    assert "can't load model.pte" in run(built, model, check=False).stderr
    for words in (("--runs", "x"), ("--runs", "-1"), ("--fast",), ("fourth",), ("--runs",)):
        done = run(built, model, *words, check=False)
        assert (done.returncode, "usage: qn_runner" in done.stderr) == (1, True)


@pytest.mark.slow
def test_an_application_loads_the_shared_library(built: Path, lowered, tmp_path: Path) -> None:
    """Registered by dlopen alone, as System.loadLibrary does it in an app."""
    (tmp_path / "model.pte").write_bytes(to_tables(lowered.stock, lowered.tables))
    script = """if True:
        import ctypes, sys
        from executorch.runtime import Runtime
        runtime = Runtime.get()
        ctypes.CDLL(sys.argv[1])
        runtime.load_program(sys.argv[2]).load_method("forward")
        print("QnXnnpackBackend" in runtime.backend_registry.registered_backend_names)
    """
    done = call(sys.executable, "-c", script, built / "libqn_xnnpack_backend.so", tmp_path / "model.pte")
    assert done.stdout.strip() == "True"


def test_sources_are_formatted() -> None:
    files = sorted([*NATIVE.glob("*.h"), *NATIVE.glob("*.cpp"), *HERE.glob("*.cpp")])
    call(tool("clang-format", "clang-format"), f"--style=file:{NATIVE / '.clang-format'}", "--dry-run", "--Werror", *files)


def test_no_bytes_make_a_reader_leave_its_bounds(tmp_path: Path) -> None:
    compiler = (tool("clang++", "clang"),)
    flags = ("-std=c++17", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", f"-I{NATIVE}")
    call(*compiler, *flags, HERE / "fuzz_blobs.cpp", FOLDER / "table.cpp", "-o", tmp_path / "fuzz", build.find_zlib(compiler))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, line in enumerate((HERE / "fuzz_corpus.txt").read_text().splitlines()):
        (corpus / str(index)).write_bytes(bytes.fromhex(line))
    call(tmp_path / "fuzz", f"-runs={RUNS}", "-seed=1", corpus, cwd=tmp_path, env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"})
