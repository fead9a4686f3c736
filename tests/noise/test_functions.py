from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.noise.functions import Change, Drawn, Noise, chosen, distort, draw, redo, rowwise

torch.set_num_threads(1)

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Sevens(Noise):
    """Drawn blocks become sevens."""

    def __init__(self, block_size: int) -> None:
        super().__init__()
        self.block_size = block_size

    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        return torch.tensor(7.0)


class Negated(Sevens):
    """Drawn blocks change their sign."""

    def values(self, weight: Tensor, blocks: Tensor, drawn: Drawn) -> Tensor:
        return -chosen(blocks, drawn)


class AsOnAccelerators(Negated):
    """Its draws have a fixed length; those past the end are held at the last block."""

    def draw(self, weight: Tensor, p: float) -> Drawn:
        drawn, last = draw(len(weight.view(-1, self.block_size)), p, CPU), len(weight.view(-1, self.block_size)) - 1
        assert isinstance(drawn.positions, Tensor)
        held = torch.cat([drawn.positions, torch.full((3,), last)])
        return Drawn(held, (drawn.positions == last).any())


def a_weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random, and nowhere zero or seven."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(weight.abs() < 0.01, 0.5, weight).to(dtype)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), p=st.floats(0, 1), seed=st.integers(0, 2**20))
def test_a_draw_is_some_of_the_blocks_each_once(n: int, p: float, seed: int) -> None:
    torch.manual_seed(seed)
    positions = draw(n, p, CPU).positions
    if p == 1:
        assert positions == slice(None)
        return
    assert isinstance(positions, Tensor)
    found = positions.tolist()
    assert found == sorted(set(found)) and all(0 <= position < n for position in found)


@pytest.mark.parametrize("p", [0.003, 0.1, 0.5, 0.9])
def test_every_block_is_drawn_at_the_rate_and_by_itself(p: float) -> None:
    torch.manual_seed(0)
    n, passes = 50, 4000
    drawn = torch.zeros(passes, n)
    for row in drawn:
        row[draw(n, p, CPU).positions] = 1
    deviation = math.sqrt(p * (1 - p) / passes)
    assert abs(float(drawn.mean()) - p) < 5 * deviation / math.sqrt(n)
    assert float((drawn.mean(0) - p).abs().max()) < 5 * deviation  # the first and the last as often as any other
    together = (drawn[:, :-1] * drawn[:, 1:]).mean()  # neighbours
    assert abs(float(together) - p * p) < 5 * math.sqrt(p * p / passes / n)
    count = drawn.sum(1).var() / (n * p * (1 - p))  # binomial
    assert 0.85 < float(count) < 1.15


def test_the_cost_of_a_draw_goes_with_the_rate() -> None:
    positions = draw(10**9, 1e-6, CPU).positions
    assert isinstance(positions, Tensor) and 800 < len(positions) < 1200


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 9),
    columns=st.integers(1, 7),
    d=st.integers(1, 9),
    p=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**20),
)
def test_drawn_blocks_change_whole_and_the_rest_is_left(out: int, columns: int, d: int, p: float, dtype: torch.dtype, seed: int) -> None:
    clean = a_weight(out, columns * d, dtype=dtype, seed=seed)
    noised = clean.clone()
    torch.manual_seed(seed)
    changes = distort(noised, [Sevens(d)], p)
    sevens = (noised.view(-1, d) == 7).all(1)
    assert torch.equal(noised.view(-1, d)[~sevens], clean.view(-1, d)[~sevens])
    expected = torch.zeros_like(sevens)
    expected[changes[0].drawn.positions] = True
    assert torch.equal(sevens, expected)
    assert torch.equal(redo(clean, changes), noised) and noised.dtype == dtype


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 20), d=st.sampled_from([1, 3]), p=st.floats(0, 0.99), seed=st.integers(0, 2**20))
def test_draws_past_the_end_leave_the_last_block_as_it_is(n: int, d: int, p: float, seed: int) -> None:
    clean = a_weight(n, d, seed=seed)
    one, other = clean.clone(), clean.clone()
    for weight, noise in ((one, Negated(d)), (other, AsOnAccelerators(d))):
        torch.manual_seed(seed)
        distort(weight, [noise], p)
    assert torch.equal(one, other)


def test_noises_work_in_order_each_on_what_those_before_it_left() -> None:
    weight = torch.arange(1.0, 5.0).reshape(1, 4)
    changes = distort(weight, [Sevens(2), Negated(1)], 1.0)
    assert weight.tolist() == [[-7.0, -7.0, -7.0, -7.0]]
    assert [change.block_size for change in changes] == [2, 1]
    weight = torch.arange(1.0, 5.0).reshape(1, 4)
    distort(weight, [Negated(1), Sevens(2)], 1.0)
    assert weight.tolist() == [[7.0, 7.0, 7.0, 7.0]]


def test_each_noise_has_a_draw_of_its_own() -> None:
    weight = torch.ones(1000, 2)
    torch.manual_seed(0)
    distort(weight, [Sevens(2), Negated(1)], 0.5)
    both = (weight == -7).float().mean()
    assert 0.2 < float(both) < 0.3  # a quarter


@pytest.mark.parametrize("d", [1, 2])
def test_chosen_literal(d: int) -> None:
    blocks = torch.arange(6).view(-1, d).to(torch.bfloat16)
    some, every = chosen(blocks, Drawn(torch.tensor([0, 2]))), chosen(blocks, Drawn(slice(None)))
    assert some.tolist() == ([[0.0], [2.0]] if d == 1 else [[0.0, 1.0], [4.0, 5.0]])
    assert torch.equal(every, blocks.float()) and some.dtype == every.dtype == torch.float32
    assert chosen(blocks, Drawn(torch.tensor([], dtype=torch.int64))).shape == (0, d)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_single_weights_get_values_of_their_own_or_one_for_all(dtype: torch.dtype) -> None:
    weight = torch.arange(1.0, 7.0, dtype=dtype).reshape(2, 3)
    some = Drawn(torch.tensor([1, 5]))
    assert redo(weight, [Change(1, some, torch.tensor([[-2.0], [-6.0]], dtype=dtype))]).tolist() == [[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]
    assert redo(weight, [Change(1, some, torch.zeros((), dtype=dtype))]).tolist() == [[1.0, 0.0, 3.0], [4.0, 5.0, 0.0]]


def test_rowwise_literal() -> None:
    some, every = Drawn(torch.tensor([0, 3, 5])), Drawn(slice(None))
    assert rowwise(torch.tensor([10.0, 20.0]), some, columns=3).tolist() == [[10.0], [20.0], [20.0]]
    assert rowwise(torch.tensor([10.0, 20.0]), every, columns=2).tolist() == [[10.0], [10.0], [20.0], [20.0]]
    assert rowwise(torch.tensor([10.0]), some, columns=3).tolist() == [[10.0]]


def test_a_noise_passes_the_gradient_straight_through() -> None:
    weight = torch.tensor([[3.0, -5.0, 4.0]], requires_grad=True)
    seen = Sevens(1)(weight, 1.0)
    torch.autograd.backward((seen * torch.tensor([10.0, 20.0, 30.0])).sum())
    assert seen.tolist() == [[7.0, 7.0, 7.0]] and weight.tolist() == [[3.0, -5.0, 4.0]]
    assert weight.grad is not None and weight.grad.tolist() == [[10.0, 20.0, 30.0]]
