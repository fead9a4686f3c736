from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.errors import ExportError
from qn_deploy.program.signature import apart, outputs_of

A, B = torch.zeros(2), torch.ones(3)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    ("returned", "names"),
    [
        (A, ("output",)),
        ((A,), ("output",)),
        ([A, B], ("output_0", "output_1")),
        ({"scores": A}, ("scores",)),
        (OrderedDict(boxes=A, labels=B), ("boxes", "labels")),
        ({"scores": (A, [B]), "more": A}, ("scores_0", "scores_1_0", "more")),
        (Pair(A, B), ("first", "second")),
        ({"a b": A, 3: B}, ("a_b", "output_3")),
    ],
    ids=["tensor", "tuple of one", "list", "dict", "ordered", "nested", "named tuple", "odd keys"],
)
def test_names_come_from_keys_fields_and_places(returned: Any, names: tuple[str, ...]) -> None:
    found = outputs_of(returned)
    assert found.names == names and found.kept == tuple(range(len(names))) and found.notes == ()
    assert all(isinstance(tensor, Tensor) for tensor in found.tensors)


def test_what_is_no_tensor_is_left_out_with_a_note_and_none_without() -> None:
    found = outputs_of({"scores": A, "name": "x", "nothing": None, "count": 3, "more": B})
    assert found.names == ("scores", "more") and [tensor.shape[0] for tensor in found.tensors] == [2, 3]
    assert found.notes == (
        "output name is left out: it is a str, and a program returns tensors",
        "output count is left out: it is a int, and a program returns tensors",
    )


def test_no_tensor_at_all_is_refused() -> None:
    with pytest.raises(ExportError, match="the model returns dict without a tensor; a program returns tensors"):
        outputs_of({"count": 3})


@given(st.lists(st.sampled_from(["x", "x_", "output", "y"])), st.sets(st.sampled_from(["x", "x_", "y__"])))
def test_names_differ_from_each_other_and_from_those_taken(names: list[str], taken: set[str]) -> None:
    found = apart(names, taken)
    assert len({*found, *taken}) == len(found) + len(taken)
    assert all(re.fullmatch(f"{name}_*", one) for name, one in zip(names, found, strict=True))


def test_a_dataclass_is_named_by_field() -> None:
    @dataclass
    class Answer:
        logits: Tensor
        hidden: tuple[Tensor, ...]

    torch.export.register_dataclass(Answer, serialized_type_name="tests.Answer")
    assert outputs_of(Answer(A, (A, B))).names == ("logits", "hidden_0", "hidden_1")
