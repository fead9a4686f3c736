from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qn_deploy.errors import InputError
from qn_deploy.verification.devices.tensors import from_bytes, to_bytes

KINDS = [torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
SHAPES = st.lists(st.integers(0, 4), max_size=4)


def test_literal_bytes() -> None:
    batch = (torch.tensor([[1, -1]], dtype=torch.int16), torch.tensor(True), torch.empty(0, 3))
    data = b"int16 1 2\n\x01\x00\xff\xffbool\n\x01float32 0 3\n"
    assert to_bytes(batch) == data
    assert [(tensor.dtype, tensor.tolist(), tensor.shape) for tensor in from_bytes(data)] == [
        (tensor.dtype, tensor.tolist(), tensor.shape) for tensor in batch
    ]


@given(st.lists(st.tuples(st.sampled_from(KINDS), SHAPES), max_size=4))
def test_what_is_written_is_read(forms: list[tuple[torch.dtype, list[int]]]) -> None:
    batch = tuple((torch.randn(shape) * 100).to(kind) for kind, shape in forms)
    back = from_bytes(to_bytes(batch))
    assert [tensor.dtype for tensor in back] == [tensor.dtype for tensor in batch]
    assert all(torch.equal(one, other) for one, other in zip(back, batch, strict=True))


def test_a_view_is_written_as_it_looks() -> None:
    assert to_bytes((torch.arange(6, dtype=torch.uint8).reshape(2, 3).T,)) == b"uint8 3 2\n\x00\x03\x01\x04\x02\x05"


@pytest.mark.parametrize(
    "data", [b"float32 2\n\x00", b"float32", b"quint8 1\n\x00", b"int8 -1\n", b"int8 x\n", b"\xff\n", b"int8 1\n\x00int8 1\n"]
)
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="the device returned no tensor file: at byte "):
        from_bytes(data)


def test_a_dtype_without_a_place_is_refused() -> None:
    with pytest.raises(InputError, match="devices take no bfloat16 tensors; expected one of float32, "):
        to_bytes((torch.zeros(1, dtype=torch.bfloat16),))
