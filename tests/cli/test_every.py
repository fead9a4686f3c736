"""What holds for every command: examples and --json in its help, what to type next at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from qn_deploy.cli import main
from qn_deploy.targets import TARGETS

EVERY = [[name] for name in main.commands] + [["devices", "setup"]]


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_the_help_has_examples_and_json(words: list[str]) -> None:
    text = CliRunner().invoke(main, [*words, "--help"], prog_name="qn-deploy").output
    assert "\n  Examples:\n" in text and "--json" in text
    examples = text.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples and all(line.startswith(f"    qn-deploy {words[0]} ") or line == f"    qn-deploy {words[0]}" for line in examples)


def said(*words: str | Path) -> Any:
    result = CliRunner().invoke(main, [*map(str, words)], prog_name="qn-deploy")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout) if "--json" in words else result.stdout


def test_json_of_what_is_there() -> None:
    targets = said("targets", "--json")
    assert targets.keys() == TARGETS.keys() and targets["x86"]["saturates"] is True
    devices = said("devices", "--json")
    assert devices[0]["name"] == "cpu" and all(each.keys() == {"name", "ready", "remark"} for each in devices)


@pytest.mark.parametrize(
    ("words", "following"), [(["targets"], "qn-deploy export"), (["devices"], "qn-deploy ")], ids=["targets", "devices"]
)
def test_the_last_line_is_what_to_type_next(words: list[str], following: str) -> None:
    assert said(*words).splitlines()[-1].startswith(f"next: {following}")


def test_inspect_names_what_comes_next(model: Any) -> None:
    assert said("inspect", model.path).splitlines()[-1] == f"next: qn-deploy export {model.path}"


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "qn-deploy exp")
    monkeypatch.setenv("COMP_CWORD", "1")
    monkeypatch.setenv("_QN_DEPLOY_COMPLETE", "bash_complete")
    assert CliRunner().invoke(main, [], prog_name="qn-deploy").stdout == "plain,export\n"


def test_every_command_is_here() -> None:
    assert all(isinstance(command, click.Command) for command in main.commands.values()) and len(EVERY) == len(main.commands) + 1
