"""Which tables stay tables, and the bytes that are told of them."""

from __future__ import annotations

import pytest
import torch

from qn_deploy.exporters.kernels.memory import bytes_in_memory, fits, in_memory, pays, remarks, to_keep
from qn_deploy.exporting.exporter import WeightMemory
from qn_deploy.weights.compressed import IntWeight, PQWeight


def table(out: int = 128, columns: int = 64, size: int = 16, d: int = 2, books: int = 1, residual: bool = False) -> PQWeight:
    codes = torch.zeros((out, columns), dtype=torch.uint8)
    centroids = torch.ones((books, size, d), dtype=torch.int8)
    second = PQWeight(codes, centroids, torch.ones(1), (out, columns * d)) if residual else None
    return PQWeight(codes, centroids, torch.ones(1), (out, columns * d), residual=second)


def test_memory_is_codes_two_copies_of_the_centroids_and_a_sum_a_row() -> None:
    assert bytes_in_memory(table()) == 128 * 64 // 2 + 32 + 2 * 32 + 4 * 128
    assert bytes_in_memory(table(out=65, columns=6)) == 128 * 8 // 2 + 32 + 2 * 32 + 4 * 65  # whole tiles
    assert bytes_in_memory(table(size=200)) == 128 * 64 + 400 + 512 + 4 * 128


@pytest.mark.parametrize(
    ("weight", "taken", "fast"),
    [
        (table(), True, True),
        (table(d=1), True, False),
        (table(size=17), True, False),
        (table(out=63), True, False),
        (table(residual=True), False, False),
        (table(d=65), False, False),
        (table(out=2, columns=8), False, False),  # takes less as int8
        (table(columns=40000), False, False),
    ],
)
def test_what_the_kernels_take_and_what_is_fast(weight: PQWeight, taken: bool, fast: bool) -> None:
    assert (fits(weight), pays(weight)) == (taken, fast)
    kept = [to_keep({"a_int8": weight, "b": weight}, memory) for memory in ("expanded", "compressed", "auto")]
    assert kept == [{}, {"a": weight} if taken else {}, {"a": weight} if fast else {}]


def test_each_table_that_becomes_int8_is_told_of() -> None:
    weights = {
        "a_int8": table(),
        "b_int8": table(size=200),
        "c_int8": IntWeight(torch.zeros((4, 4), dtype=torch.int8), torch.ones(1)),
        "d": table(),
    }
    found = in_memory(weights, ["a"], "compressed")
    assert found == {"a": WeightMemory(16384, 4704), "b": WeightMemory(16384)}
    assert [entry.taken for entry in found.values()] == [4704, 16384]
    assert remarks(found, "compressed", " here") == ("1 layer keeps its table in memory here: 4,704 bytes instead of 16,384",)
    assert remarks(in_memory(weights, [], "auto"), "auto")[0].startswith("no layer keeps its table in memory")
    assert in_memory(weights, [], "expanded") == {} and remarks({}, "expanded") == ()
