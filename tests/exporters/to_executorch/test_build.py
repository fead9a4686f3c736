from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qn_deploy.errors import ToolchainError
from qn_deploy.exporters.compiler import find_compiler
from qn_deploy.exporters.to_executorch import build
from qn_deploy.exporters.to_executorch.build import LIBRARY, build_backend, find_zlib


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_compiler(folder: Path, body: str) -> tuple[str, ...]:
    """A compiler that names itself and finds no library, then runs `body` with the output's path in $out."""
    script = folder / "fakecxx"
    script.write_text(
        "#!/bin/sh\n"
        'while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done\n'
        'case "$1" in --version) echo fake 1.0; exit;; -print-file-name=*) echo "${1#*=}"; exit;; esac\n'
        f"{body}\n"
    )
    script.chmod(0o755)
    return (str(script),)


@pytest.mark.slow
def test_sources_compile_without_a_warning(empty_cache: Path) -> None:
    library = build_backend((*find_compiler(), "-Wall", "-Wextra", "-Werror", "-O0"))
    assert library.name == LIBRARY
    assert library.is_relative_to(empty_cache / "qn-deploy")
    assert library.read_bytes().startswith(b"\x7fELF")


def test_the_second_build_takes_the_first_ones_library(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, f'echo x >> {tmp_path}/runs; echo library > "$out"')
    assert build_backend(compiler) == build_backend(compiler)
    assert (tmp_path / "runs").read_text() == "x\n"


def test_another_compiler_builds_another_library(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, 'echo library > "$out"')
    assert build_backend(compiler) != build_backend((*compiler, "-DOTHER"))


def test_builds_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    compiler = fake_compiler(tmp_path, 'echo half > "$out"; sleep 0.2; echo whole > "$out"')
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: build_backend(compiler).read_text(), range(4)))
    assert built == ["whole\n"] * 4
    assert [path.name for path in build_backend(compiler).parent.iterdir()] == [LIBRARY]


def test_a_failed_compilation_shows_the_compilers_last_lines_and_leaves_nothing(tmp_path: Path, empty_cache: Path) -> None:
    compiler = fake_compiler(tmp_path, 'echo half > "$out"; echo "error: no such operator" >&2; exit 1')
    with pytest.raises(ToolchainError, match="error: no such operator"):
        build_backend(compiler)
    assert not [path for path in empty_cache.rglob("*") if path.is_file()]


def test_no_compiler_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolchainError, match=r"no C\+\+ compiler found.*apt-get install g\+\+.*CXX"):
        build_backend()


def test_cxx_wins_and_may_hold_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = fake_compiler(tmp_path, "")
    monkeypatch.setenv("CXX", f"{path} -m64")
    assert find_compiler() == (path, "-m64")


def test_a_cxx_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-cxx")
    with pytest.raises(ToolchainError, match="no-such-cxx"):
        find_compiler()


def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="set XDG_CACHE_HOME"):
        build_backend(fake_compiler(tmp_path, ""))


@pytest.mark.parametrize(
    ("present", "option"),
    [
        pytest.param((), "-lz", id="elsewhere"),
        pytest.param(("libz.so.1",), "-l:libz.so.1", id="without its development package"),
        pytest.param(("libz.so", "libz.so.1"), "-lz", id="both"),
        pytest.param(("libz.so",), "-lz", id="Android"),
    ],
)
def test_zlib_is_linked_by_the_name_it_has(tmp_path: Path, present: tuple[str, ...], option: str) -> None:
    script = tmp_path / "finder"
    found = " ".join(f"-print-file-name={name}) echo /lib/{name};;" for name in present)
    script.write_text(f'#!/bin/sh\ncase "$1" in {found} *) echo "${{1#*=}}";; esac\n')
    script.chmod(0o755)
    assert find_zlib((str(script),)) == option


@pytest.mark.slow
def test_the_backend_links_zlib_by_its_run_time_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_zlib", lambda _: "-l:libz.so.1")
    assert build_backend((*find_compiler(), "-O0")).exists()


def test_a_missing_zlib_is_named(tmp_path: Path) -> None:
    for said in ("ld: cannot find -lz: No such file", "ld.lld: error: unable to find library -lz", "ld: library 'z' not found"):
        compiler = fake_compiler(tmp_path, f'echo "{said}" >&2; exit 1')
        with pytest.raises(ToolchainError, match=r"does not find zlib .*apt-get install zlib1g"):
            build_backend(compiler)
