from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from qn_deploy.exporters.to_executorch.build import LIBRARY, build_backend, find_compiler

from qn_deploy.errors import ToolchainError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fake_compiler(folder: Path, body: str) -> tuple[str, ...]:
    """A compiler that names itself, then runs `body` with the output's path in $out."""
    script = folder / "fakecxx"
    script.write_text(f'#!/bin/sh\nfor out; do :; done\n[ "$out" = --version ] && echo fake 1.0 && exit 0\n{body}\n')
    script.chmod(0o755)
    return (str(script),)


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
