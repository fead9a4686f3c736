"""A message is one line, whatever an error of another library says."""

from __future__ import annotations

import pytest

from qn_deploy.errors import InputError, first_line


@pytest.mark.parametrize(
    ("said", "silent", "expected"),
    [
        ("what\nwhere", "", "what"),
        ("\n  what\n", "", "what"),
        ("", "", "ValueError"),
        (" \n", "no message", "no message"),
    ],
)
def test_the_first_line_of_what_an_error_says(said: str, silent: str, expected: str) -> None:
    assert first_line(ValueError(said), silent) == expected


def test_control_characters_are_written_out() -> None:
    assert str(InputError("a\nb\x1b[2J\0")) == r"a\nb\x1b[2J\x00"
