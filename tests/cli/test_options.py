from __future__ import annotations

from typing import Any

import click
from click.testing import CliRunner

from qn_deploy.cli.options import ExportCommand, chosen_options


def chosen(*words: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    @click.command(cls=ExportCommand)
    @click.pass_context
    def command(context: click.Context) -> None:
        found.update(chosen_options(context))

    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    return found


def test_an_option_of_several_exporters_is_chosen_for_each_of_them() -> None:
    assert chosen("--memory", "auto") == {"executorch": {"memory": "auto"}, "onnx": {"memory": "auto"}}


def test_an_option_of_one_exporter_is_chosen_for_it_alone() -> None:
    assert chosen("--shell", "--executorch-form", "graph") == {"onnx": {"shell": True}, "executorch": {"form": "graph"}}


def test_a_default_is_no_choice() -> None:
    assert chosen() == {} and chosen("--memory", "expanded") == {}
