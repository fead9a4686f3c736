from __future__ import annotations

import torch

from qn_deploy.memory import as_laid_out


def test_values_are_given_in_the_order_of_memory_without_copies() -> None:
    plain = torch.arange(120.0).reshape(2, 3, 4, 5)
    last = plain.to(memory_format=torch.channels_last)
    for value in (plain, last, plain.mT, plain[:1], torch.tensor(3.0)):
        [flat] = as_laid_out(value)
        assert flat.shape == (value.numel(),) and flat.data_ptr() == value.data_ptr()
        assert torch.equal(flat.sort().values, value.flatten().sort().values)


def test_a_second_value_takes_the_order_of_the_first() -> None:
    plain = torch.arange(120.0).reshape(2, 3, 4, 5)
    one, other = as_laid_out(plain.to(memory_format=torch.channels_last), 2 * plain)
    assert torch.equal(2 * one, other)
