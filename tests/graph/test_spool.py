from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.graph.spool import Spool


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8]),
    st.lists(st.integers(0, 4), max_size=4),
    st.randoms(use_true_random=False),
    st.sampled_from([0, 40, 1 << 20]),
)
def test_a_value_comes_back_with_its_bits_and_strides(dtype: torch.dtype, shape: list[int], order: object, limit: int) -> None:
    value = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    dimensions = list(range(len(shape)))
    order.shuffle(dimensions)  # type: ignore[attr-defined]
    value = value.permute(dimensions)
    spool = Spool(limit)
    for part in range(3):
        spool.put("group", part, value)
    for last in (False, True):
        for part in (2, 0, 1):
            found = spool.get("group", part, last)
            assert found.dtype == dtype and torch.equal(found, value)
            assert found.stride() == value.stride() or not value.numel()
    assert spool.held == 0 and not spool._values and not spool._files


def test_what_is_over_the_limit_lies_in_a_file() -> None:
    spool = Spool(100)
    for part in range(4):
        spool.put("a", part, torch.full((10,), float(part)))  # 40 bytes
    assert spool.held == 80 and len(spool._files) == 1
    assert [spool.get("a", part, last=True)[0].item() for part in range(4)] == [0, 1, 2, 3]
    spool.put("b", 0, torch.zeros(25))
    assert spool.held == 100 and not spool._files


def test_a_view_does_not_keep_the_whole() -> None:
    spool = Spool(1 << 20)
    spool.put("a", 0, torch.zeros(1000)[:10])
    assert spool.get("a", 0).untyped_storage().nbytes() == 40


@pytest.mark.parametrize("value", [7, (torch.ones(2), None), "text"])
def test_what_is_no_tensor_stays_in_memory(value: object) -> None:
    spool = Spool(0)
    spool.put("a", 0, value)
    assert spool.get("a", 0, last=True) is value


def test_a_value_that_was_taken_is_gone() -> None:
    spool = Spool(0)
    spool.put("a", 0, torch.ones(2))
    assert isinstance(spool.get("a", 0, last=True), Tensor)
    with pytest.raises(KeyError):
        spool.get("a", 0)
