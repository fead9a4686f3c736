from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from qn_deploy.errors import InputError
from qn_deploy.sources.code import call, function_of, is_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("net:build", True),
        ("a.b.c:build", True),
        ("net", False),
        ("net:", False),
        (":build", False),
        ("a/b:build", False),
        ("net.pt2", False),
    ],
)
def test_a_name_has_a_module_and_a_function(text: str, expected: bool) -> None:
    assert is_name(text) == expected


def test_a_function_of_the_current_folder_is_called(net: str) -> None:
    before = list(sys.path)
    assert call(f"{net}:number") == 5
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{net}", "'{net}' does not name a function; write package.module:function, my_net:build for example"),
        ("{net}:train", "{net} has no function 'train'; it has Net, batches, broken, build"),
        ("no_such_module_1:build", "there is no module 'no_such_module_1' here; run from the folder that holds it, or install it"),
        ("{net}:broken", "calling {net}:broken failed with ValueError: no such layer ({net}.py, line "),
    ],
)
def test_what_goes_wrong_is_one_line(net: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message.format(net=net))) as caught:
        call(text.format(net=net))
    assert "\n" not in str(caught.value)


def test_a_module_that_fails_says_where(here: Path) -> None:
    (here / "failing_module_1.py").write_text("import os\n\n1 / 0\n")
    with pytest.raises(
        InputError, match=r"importing failing_module_1 failed with ZeroDivisionError: division by zero \(failing_module_1.py, line 3"
    ):
        function_of("failing_module_1:build")


def test_a_module_that_needs_a_missing_one_names_it(here: Path) -> None:
    (here / "needing_module_1.py").write_text("import no_such_module_2\n")
    with pytest.raises(InputError, match=r"importing needing_module_1 failed with ModuleNotFoundError: No module named 'no_such_module_2'"):
        function_of("needing_module_1:build")


def test_a_function_that_takes_something_is_told_of_alike(here: Path) -> None:
    (here / "metric_module_1.py").write_text("def share(run):\n    return 100 / run()\n")
    share = function_of("metric_module_1:share")
    assert share(lambda: 4) == 25
    with pytest.raises(InputError, match=r"calling metric_module_1:share failed with ZeroDivisionError: .* \(metric_module_1.py, line 2\)"):
        share(lambda: 0)
