from __future__ import annotations

import pytest
import torch

from qn_deploy.errors import InputError
from qn_deploy.sources.example import made_examples


def test_inputs_are_made_as_described_and_are_the_same_each_time() -> None:
    texts = ("image=float32[2,3,4,4]", "ids=int64[2, 7]", "mask=bool[2,7]")
    found = made_examples(texts)
    assert {name: (value.dtype, list(value.shape)) for name, value in found.items()} == {
        "image": (torch.float32, [2, 3, 4, 4]),
        "ids": (torch.int64, [2, 7]),
        "mask": (torch.bool, [2, 7]),
    }
    assert found["mask"].all() and not found["ids"].any() and 0.5 < float(found["image"].std()) < 1.5
    assert torch.equal(found["image"], made_examples(texts)["image"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["image"], "'image' describes no input; write name=dtype"),
        (["image=float16[1]"], "describes no input"),
        (["image=float32[1,-3]"], "describes no input"),
        (["image=float32[1,0]"], "describes 0 elements"),
        (["image=float32[100000,100000]"], "describes 10,000,000,000 elements"),
        (["x=float32[1]", "x=float32[2]"], "the input x is described twice"),
    ],
)
def test_a_wrong_description_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made_examples(texts)
