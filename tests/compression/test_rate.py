from __future__ import annotations

from math import inf, log2

import pytest
import torch

from qn_deploy.compression.rate import Price, bits_of, counted, entropy, slope


def test_codes_are_counted_in_the_codebook_that_they_read() -> None:
    codes = torch.tensor([[0, 1, 1], [0, 0, 1]])  # columns 0 and 1 read the first codebook, column 2 the second
    assert counted(codes, 2, 3).tolist() == [[3, 1, 0], [0, 2, 0]]


def test_a_code_takes_the_bits_of_its_share() -> None:
    bits = bits_of(torch.tensor([[1000.0, 1000.0, 2000.0, 0.0]]))
    assert bits[0, :3].tolist() == pytest.approx([2, 2, 1], abs=0.01)
    assert 10 < float(bits[0, 3]) < inf


def test_centroids_of_few_values_take_few_bits() -> None:
    assert entropy(torch.tensor([[[-127.0], [127.0], [0.0], [0.0]]])) == pytest.approx(6)
    assert entropy(torch.full((2, 3, 4), 5.0)) == 0


def test_the_slope_is_that_of_distortion_over_bits() -> None:
    d, loss, codes = 8, 3.0, 100
    per_code, step = loss / codes, 1e-4
    assert slope(loss, codes, d) == pytest.approx(per_code * (1 - 2 ** (-2 * step / d)) / step, rel=1e-3)
    assert log2(slope(2 * loss, codes, d) / slope(loss, codes, d)) == 1


def test_a_column_has_the_price_of_its_codebook() -> None:
    price = Price(torch.ones(1, 2, 1), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert [price.of_column(column, 4)[1].tolist() for column in range(4)] == [[1, 2], [1, 2], [3, 4], [3, 4]]
