from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qn_deploy.errors import InputError
from qn_deploy.program.graph_json import dump_graph
from qn_deploy.program.graph_types import check_types
from tests.program.archives import conv_program

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def text() -> bytes:
    return dump_graph(conv_program().exported)


def test_what_torch_writes_has_its_types(text: bytes) -> None:
    check_types(json.loads(text))


def module(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["graph_module"]
    return found


CHANGES: dict[str, tuple[Change, str]] = {
    "a number for a list": (lambda data: data.update(guards_code=0), "guards_code '0' is refused; expected list"),
    "a number in a list of texts": (lambda data: data.update(guards_code=[0]), "guards_code '0' is refused; expected str"),
    "a number for a name": (lambda data: module(data)["module_call_graph"][0].update(fqn=3), "fqn '3' is refused; expected str"),
    "truth for a name": (lambda data: module(data)["graph"]["nodes"][0].update(name=True), "name 'True' is refused; expected str"),
    "truth for a number": (lambda data: data["schema_version"].update(major=True), "major 'True' is refused; expected int"),
    "a dict for a list": (lambda data: module(data)["graph"].update(nodes={}), "nodes '{}' is refused; expected list"),
    "a list for a dict": (lambda data: data.update(graph_module=[]), r"graph_module '\[\]' is refused; expected dict"),
    "a key that is missing": (lambda data: module(data)["graph"]["nodes"][0].pop("target"), "nodes has no 'target'"),
    "a dtype of nobody": (
        lambda data: next(iter(module(data)["graph"]["tensor_values"].values())).update(dtype=99),
        "dtype '99' is refused; expected a number of ScalarType",
    ),
    "two values for one": (
        lambda data: module(data)["graph"]["inputs"][0].update(as_int=1),
        "inputs .* is refused; expected one of as_none",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_other_types_are_refused_and_named(text: bytes, what: str) -> None:
    change, message = CHANGES[what]
    data = json.loads(text)
    change(data)
    with pytest.raises(InputError, match=f"the graph's {message}"):
        check_types(data)
