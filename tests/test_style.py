"""Rules of the repository that no other tool checks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qn_deploy.cli import main

ROOT = Path(__file__).parents[1]

# Written in two parts: this file is searched too.
REGISTRIES = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download.pytorch", "org"),
        ("conda.anaconda", "org"),
        ("anaconda", "com"),
        ("repo.maven.apache", "org"),
        ("repo1.maven", "org"),
        ("maven.google", "com"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("crates", "io"),
        ("proxy.golang", "org"),
    ]
]
WORK_FOLDER = re.compile(rb"(?<![\w.~$}-])/(?:work|root|Users|home/\w+)/")


def sources() -> list[Path]:
    """Every file that git tracks or would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def found(pattern: re.Pattern[bytes], paths: list[Path]) -> list[str]:
    return [f"{path.relative_to(ROOT)}: {match.group().decode()}" for path in paths for match in pattern.finditer(path.read_bytes())]


def test_no_file_names_a_registry() -> None:
    paths = sources()
    assert ROOT / "pyproject.toml" in paths
    assert found(re.compile("|".join(map(re.escape, REGISTRIES)).encode(), re.IGNORECASE), paths) == []


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    assert found(WORK_FOLDER, sources()) == []


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("see /" + "work/main/x.py", True),
        ('"/' + 'root/.cache"', True),
        ("/" + "home/ann/x", True),
        ("net/" + "work/x", False),
        ("~/" + "work/", False),
        ("$HOME/" + "work/", False),
        ("https://example.org/" + "home/x/", False),
    ],
)
def test_the_pattern_of_such_paths(text: str, bad: bool) -> None:
    assert bool(WORK_FOLDER.search(text.encode())) == bad


def help_blocks() -> dict[str, str]:
    """The text that docs/commands.md gives for each command's --help."""
    pattern = re.compile(r"<!-- help: (.+?) -->\n```text\n(.*?)\n?```\n<!-- /help -->", re.DOTALL)
    return dict(pattern.findall((ROOT / "docs" / "commands.md").read_text()))


@pytest.mark.parametrize("command", ["qn-deploy", *(f"qn-deploy {name}" for name in main.commands)])
def test_the_docs_give_the_real_help(command: str) -> None:
    name, *arguments = command.split()
    result = CliRunner().invoke(main, [*arguments, "--help"], prog_name=name, terminal_width=100)
    assert help_blocks().get(command) == result.output.rstrip("\n"), (
        f"put the text of `{command} --help` between the markers in docs/commands.md"
    )


def test_the_docs_give_no_help_of_commands_that_do_not_exist() -> None:
    assert set(help_blocks()) == {"qn-deploy", *(f"qn-deploy {name}" for name in main.commands)}


SKIPPING = {
    "test_mark.py": "import pytest\n@pytest.mark.skip(reason='no lane')\ndef test(): pass\n",
    "test_call.py": "import pytest\ndef test(): pytest.skip('no lane')\n",
    "test_fixture.py": "import pytest\n@pytest.fixture\ndef lane(): pytest.skip('no lane')\ndef test(lane): pass\n",
    "test_file.py": "import pytest\npytest.skip('no lane', allow_module_level=True)\n",
    "test_xfail.py": "import pytest\n@pytest.mark.xfail\ndef test(): assert 0\n",
    "test_pass.py": "def test(): pass\n",
}


@pytest.mark.slow
def test_qn_require_turns_skips_into_failures(tmp_path: Path) -> None:
    shutil.copy(ROOT / "conftest.py", tmp_path)
    for name, text in SKIPPING.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", "--continue-on-collection-errors", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "QN_REQUIRE": "all"}, check=False)
    outcomes = {name: word for word, name in re.findall(r"^(FAILED|ERROR|XFAIL|SKIPPED) (test_\w+)\.py", done.stdout, re.MULTILINE)}
    assert outcomes == {
        "test_mark": "ERROR",
        "test_call": "FAILED",
        "test_fixture": "ERROR",
        "test_file": "ERROR",
        "test_xfail": "XFAIL",
    }, done.stdout
    assert done.stdout.count("QN_REQUIRE=all allows no skips. Skipped: no lane") >= 4
    assert done.returncode == 1
