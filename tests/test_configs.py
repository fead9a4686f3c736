from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qn_deploy.compression.blockwise import BlockConfig
from qn_deploy.compression.code_moves import CodeConfig
from qn_deploy.compression.compress import CompressConfig
from qn_deploy.compression.iterative import IPQConfig
from qn_deploy.compression.tune import TuneConfig
from qn_deploy.configs import from_dict, to_dict
from qn_deploy.errors import InputError
from qn_deploy.exporting.config import ExportConfig

CONFIGS = {kind.__name__: kind for kind in (BlockConfig, CodeConfig, CompressConfig, IPQConfig, TuneConfig, ExportConfig)}


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    steps: int
    ratio: float | None = None
    exact: int | float = 1
    on: bool = True
    mode: Literal["fast", "slow"] = "fast"
    names: tuple[str, ...] = ()
    pair: tuple[int, str] = (1, "a")
    colour: Colour = Colour.RED
    inner: Inner = Inner()
    rates: dict[str, float] = field(default_factory=dict)


OUTERS = st.builds(
    Outer,
    steps=st.integers(),
    ratio=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    exact=st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    on=st.booleans(),
    mode=st.sampled_from(["fast", "slow"]),
    names=st.lists(st.text()).map(tuple),
    pair=st.tuples(st.integers(), st.text()),
    colour=st.sampled_from(Colour),
    inner=st.builds(Inner, st.floats(allow_nan=False, allow_infinity=False)),
    rates=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
)


@given(OUTERS)
def test_any_configuration_comes_back_through_json(config: Outer) -> None:
    found = from_dict(Outer, json.loads(json.dumps(to_dict(config))))
    assert found == config and type(found.exact) is type(config.exact)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_configurations_of_all_stages_come_back(name: str) -> None:
    config = CONFIGS[name]()
    assert from_dict(CONFIGS[name], json.loads(json.dumps(to_dict(config)))) == config


def test_the_plain_form_is_json() -> None:
    assert to_dict(Outer(3, names=("a", "b"), rates={"x": 1.0})) == {
        "steps": 3,
        "ratio": None,
        "exact": 1,
        "on": True,
        "mode": "fast",
        "names": ["a", "b"],
        "pair": [1, "a"],
        "colour": "red",
        "inner": {"rate": 0.5},
        "rates": {"x": 1.0},
    }
    assert from_dict(Outer, {"steps": 3}) == Outer(3)
    assert type(from_dict(Inner, {"rate": 1}).rate) is float


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "Outer needs a value for steps"),
        ([1], r"a Outer is a map from fields to values; found \[1\]"),
        ({"steps": 1, "step": 2}, "Outer has no step; its fields are steps, ratio,"),
        ({"steps": "1"}, r"Outer\.steps is '1'; expected int"),
        ({"steps": True}, r"Outer\.steps is True; expected int"),
        ({"steps": 1.0}, r"Outer\.steps is 1\.0; expected int"),
        ({"steps": 1, "ratio": "x"}, r"Outer\.ratio is 'x'; expected float or None"),
        ({"steps": 1, "mode": "medium"}, r"Outer\.mode is 'medium'; expected one of 'fast', 'slow'"),
        ({"steps": 1, "names": "ab"}, r"Outer\.names is 'ab'; expected tuple"),
        ({"steps": 1, "names": [1]}, r"Outer\.names is 1; expected str"),
        ({"steps": 1, "pair": [1]}, r"Outer\.pair is \[1\]; expected tuple"),
        ({"steps": 1, "colour": "green"}, r"Outer\.colour is 'green'; expected one of 'red', 'blue'"),
        ({"steps": 1, "inner": {"rate": None}}, r"Inner\.rate is None; expected float"),
        ({"steps": 1, "rates": {"x": "y"}}, r"Outer\.rates\['x'\] is 'y'; expected float"),
    ],
)
def test_what_does_not_fit_is_named(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        from_dict(Outer, data)


def test_a_field_that_json_cannot_hold_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match="a configuration holds a set"):
        to_dict(Outer(1, rates={"x": {1}}))  # type: ignore[dict-item]
