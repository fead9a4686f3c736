from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qn_deploy.compression.code_moves import CodeConfig, CodeMoves, take_best
from qn_deploy.compression.student import attach_weight, compressed_weights
from qn_deploy.compression.table_gradients import Move
from qn_deploy.errors import InputError
from qn_deploy.recipe import Table
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.tables import table_from_weight
from tests.compression.samples import random

ONE = CodeConfig(every=3, judges=1, share=1.0)
BATCH = (torch.zeros(1),)


def a_student(table: Table, per_channel: bool = True, out: int = 12) -> nn.Module:
    net = nn.Embedding(out, 24)
    weight = random(out, 24) * torch.arange(1.0, 1 + out)[:, None]
    attach_weight(net, "weight", table_from_weight(weight, table, per_channel=per_channel))
    return net


def table_of(net: nn.Module) -> PQWeight:
    table = compressed_weights(net)["weight"]
    assert isinstance(table, PQWeight)
    return table


def learn(net: nn.Module, *gradients: Tensor) -> None:
    """Backward passes in which the weight gets these gradients."""
    for gradient in gradients:
        torch.autograd.backward(net.weight, gradient)


class Told:
    """A loss that falls, or rises, each time it is asked for."""

    def __init__(self, net: nn.Module, by: float) -> None:
        self.net, self.by, self.asked = net, by, list[PQWeight]()

    def __call__(self, batch: object, goal: object) -> float:
        self.asked.append(table_of(self.net))
        return self.by * len(self.asked)


def moved(net: nn.Module, config: CodeConfig, *gradients: Tensor, by: float = -1e9, share: float = 0.0) -> int:
    """Lets the codes learn from these gradients; how many changed."""
    moves = CodeMoves(net, replace(config, every=len(gradients) + 1), Told(net, by))
    for gradient in (*gradients, torch.full_like(gradients[0], 1e9)):  # what the judge's gradient is does not count
        assert moves.before(share, BATCH, None) == 0
        learn(net, gradient)
    return moves.before(share, BATCH, None)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    books=st.sampled_from([1, 3]),
    residual=st.sampled_from([0, 5]),
    per_channel=st.booleans(),
    share=st.sampled_from([0.02, 0.3, 1.0]),
    reach=st.sampled_from([0.05, 1.0, 20.0]),
)
def test_the_modelled_loss_falls_and_no_more_than_the_share_moves(
    seed: int, books: int, residual: int, per_channel: bool, share: float, reach: float
) -> None:
    net = a_student(Table(4, 16, codebooks=books, residual=residual), per_channel)
    before = table_of(net)
    common = random(12, 24, seed=seed) * random(12, 1, seed=seed).exp()
    gradients = [common + random(12, 24, seed=seed + i) * random(12, 1, seed=seed + 9) for i in range(3)]
    count = moved(net, replace(ONE, share=share, reach=reach), *gradients)
    after = table_of(net)

    changed = [one.codes != other.codes for one, other in zip(before.tables, after.tables, strict=True)]
    assert int(torch.stack(changed).sum(0).max()) <= 1, "one of a block's two codes at most"
    assert sum(int(each.sum()) for each in changed) == count <= share * sum(each.numel() for each in changed)
    assert all(int(table.codes.max()) < 16 for table in after.tables)
    assert all(torch.equal(one.centroids, other.centroids) for one, other in zip(before.tables, after.tables, strict=True))

    change = sum(
        (new.centroids.float().flatten(0, 1)[new.rows] - old.centroids.float().flatten(0, 1)[old.rows])
        for old, new in zip(before.tables, after.tables, strict=True)
    )
    rise = modelled(before, gradients, reach, (change * before.scale.reshape(-1, 1, 1))[:, :, None])[:, :, 0]
    assert bool((rise[changed[0] | changed[-1]] < 0).all())


def modelled(table: PQWeight, gradients: list[Tensor], reach: float, change: Tensor) -> Tensor:
    """What the loss would rise by, of changes [out, B, n, d] of each block: [out, B, n]."""
    blocks = torch.stack(gradients).reshape(len(gradients), *table.codes.shape, -1)
    square = blocks.square().mean((0, 3))
    together = torch.einsum("noid,noie->ide", blocks, blocks)
    shape = together / together.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    shape = 0.9 * shape + 0.1 * torch.eye(blocks.shape[3])
    factor = 1 / (reach * table.dequantize().square().mean().sqrt() * blocks.square().mean().sqrt())
    bent = torch.einsum("oind,ide,oine->oin", change, shape, change) * (square + 0.01 * square.mean())[:, :, None]
    mean = blocks.mean(0)
    noise = blocks.var(0).sum(2, keepdim=True) / len(blocks)
    believed = (1 - noise / mean.square().sum(2, keepdim=True)).clamp_min(0)
    return torch.einsum("oid,oind->oin", believed * mean, change) + factor * bent / 2


def test_a_block_takes_the_centroid_at_which_the_model_is_lowest() -> None:
    net = a_student(Table(4, 16))
    before = table_of(net)
    gradients = [random(12, 24, seed=3) + random(12, 24, seed=i) / 4 for i in (4, 5)]
    moved(net, replace(ONE, reach=2.0), *gradients)
    change = before.scale.reshape(-1, 1, 1, 1) * (
        before.centroids[0].float() - before.centroids[0].float()[before.codes.long()][:, :, None]
    )
    assert torch.equal(table_of(net).codes.long(), modelled(before, gradients, 2.0, change).argmin(2))
    assert not torch.equal(table_of(net).codes, before.codes)


def test_those_that_gain_most_move_first() -> None:
    gains = torch.tensor([[0.0, 5.0, 1.0], [4.0, 0.0, 3.0]]), torch.tensor([[2.0, 9.0]])
    moves = [Move(torch.zeros(gain.shape, dtype=torch.uint8), torch.full(gain.shape, 7), gain) for gain in gains]
    assert take_best(moves, 0.5) == (4, 21.0)
    assert [move.codes.tolist() for move in moves] == [[[0, 7, 0], [7, 0, 7]], [[0, 7]]]
    assert take_best(moves, 1.0) == (6, 24.0)  # none that gains nothing
    assert [move.codes.tolist() for move in moves] == [[[0, 7, 7], [7, 0, 7]], [[7, 7]]]
    assert take_best([], 1.0) == (0, 0.0)


def test_a_move_that_does_not_lower_the_loss_is_taken_back() -> None:
    net = a_student(Table(4, 16, residual=5))
    before, gradient = table_of(net), random(12, 24, seed=3)
    told = Told(net, 1.0)
    moves = CodeMoves(net, replace(ONE, reach=4.0, tries=3), told)
    for _ in range(3):
        moves.before(0.0, BATCH, None)
        learn(net, gradient)
    assert moves.before(0.0, BATCH, None) == 0
    assert len(told.asked) == 4 and all(not torch.equal(each.codes, before.codes) for each in told.asked[1:])
    after = table_of(net)
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(before.tables, after.tables, strict=True))
    assert float(moves.state()["place"][1]) == 4.0 / 2**3


@pytest.mark.parametrize(("by", "reach"), [(-1e9, 4.0), (-1e-30, 1.0)])
def test_the_reach_grows_where_the_loss_falls_as_foreseen_and_shrinks_where_it_falls_less(by: float, reach: float) -> None:
    net = a_student(Table(4, 16))
    moves = CodeMoves(net, replace(ONE, reach=2.0), Told(net, by))
    for _ in range(3):
        moves.before(0.0, BATCH, None)
        learn(net, random(12, 24, seed=3))
    assert moves.before(0.0, BATCH, None) > 0
    assert float(moves.state()["place"][1]) == reach


def test_codes_stay_towards_the_end_and_where_nothing_was_learnt() -> None:
    net, gradient = a_student(Table(4, 16)), random(12, 24, seed=3)
    before = table_of(net).codes
    config = replace(ONE, reach=2.0, until=0.5)
    assert moved(net, config, 0 * gradient, 0 * gradient) == 0
    assert moved(net, config, gradient, gradient, share=0.6) == 0
    assert moved(net, config, gradient, -gradient) == 0  # nothing but noise
    assert torch.equal(table_of(net).codes, before)
    assert moved(net, config, gradient, gradient, share=0.5) > 0


def test_many_codes_are_16_bits() -> None:
    net, gradient = a_student(Table(2, 300), out=40), random(40, 24, seed=3)
    assert moved(net, replace(ONE, reach=2.0), gradient, gradient) > 0
    assert table_of(net).codes.dtype == torch.uint16


def test_the_program_keeps_its_codes() -> None:
    net, gradient = nn.Embedding(12, 24), random(12, 24, seed=3)
    table = table_from_weight(random(12, 24), Table(4, 16))
    codes = table.codes.clone()
    attach_weight(net, "weight", table)
    taken = table_of(net)
    kept = taken.codes.clone()
    assert moved(net, replace(ONE, reach=2.0), gradient, gradient) > 0
    assert torch.equal(table.codes, codes) and torch.equal(taken.codes, kept)


@pytest.mark.parametrize(
    "bad",
    [{"every": 2, "judges": 1}, {"judges": 0}, {"share": 0.0}, {"share": 1.1}, {"reach": 0.0}, {"tries": 0}, {"until": 1.5}],
)
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"expected (at least 3, 1 to every - 2|above 0, 1 or more)"):
        CodeConfig(**bad)  # type: ignore[arg-type]
