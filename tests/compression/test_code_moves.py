from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qn_deploy.compression.code_moves import CodeConfig, CodeMoves, Move, take_best
from qn_deploy.compression.student import attach_weight, compressed_weights
from qn_deploy.errors import InputError
from qn_deploy.recipe import Table
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.tables import table_from_weight
from tests.compression.samples import random

ONE = CodeConfig(every=1, share=1.0)


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


def falling() -> float:
    """A loss that falls each time it is asked for."""
    falling.now -= 1e6  # type: ignore[attr-defined]
    return float(falling.now)  # type: ignore[attr-defined]


falling.now = 0.0  # type: ignore[attr-defined]


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
    moves = CodeMoves(net, CodeConfig(every=2, share=share, reach=reach))
    gradients = [random(12, 24, seed=seed + i) * random(12, 1, seed=seed).exp() for i in range(2)]
    assert moves.before(0.0, falling) == 0
    learn(net, gradients[0])
    assert moves.before(0.0, falling) == 0
    learn(net, gradients[1])
    count = moves.before(0.0, falling)
    after = table_of(net)

    moved = [one.codes != other.codes for one, other in zip(before.tables, after.tables, strict=True)]
    assert int(torch.stack(moved).sum(0).max()) <= 1, "one of a block's two codes at most"
    assert sum(int(each.sum()) for each in moved) == count <= share * sum(each.numel() for each in moved)
    assert all(int(table.codes.max()) < 16 for table in after.tables)
    assert all(torch.equal(one.centroids, other.centroids) for one, other in zip(before.tables, after.tables, strict=True))

    change = sum(
        (new.centroids.float().flatten(0, 1)[new.rows] - old.centroids.float().flatten(0, 1)[old.rows])
        for old, new in zip(before.tables, after.tables, strict=True)
    )
    rise = modelled(before, gradients, reach, (change * before.scale.reshape(-1, 1, 1))[:, :, None])[:, :, 0]
    assert bool((rise[moved[0] | moved[-1]] < 0).all())


def modelled(table: PQWeight, gradients: list[Tensor], reach: float, change: Tensor) -> Tensor:
    """What the loss would rise by, of changes [out, B, n, d] of each block: [out, B, n]."""
    blocks = torch.stack(gradients).reshape(len(gradients), *table.codes.shape, -1)
    square = blocks.square().mean((0, 3))
    together = torch.einsum("noid,noie->ide", blocks, blocks)
    shape = together / together.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    shape = 0.9 * shape + 0.1 * torch.eye(blocks.shape[3])
    factor = 1 / (reach * table.dequantize().square().mean().sqrt() * blocks.square().mean().sqrt())
    bent = torch.einsum("oind,ide,oine->oin", change, shape, change) * (square + 0.01 * square.mean())[:, :, None]
    return torch.einsum("oid,oind->oin", blocks.mean(0), change) + factor * bent / 2


def test_a_block_takes_the_centroid_at_which_the_model_is_lowest() -> None:
    net = a_student(Table(4, 16))
    before = table_of(net)
    gradient = random(12, 24, seed=3)
    moves = CodeMoves(net, replace(ONE, reach=2.0))
    moves.before(0.0, falling)
    learn(net, gradient)
    moves.before(0.0, falling)
    change = before.scale.reshape(-1, 1, 1, 1) * (
        before.centroids[0].float() - before.centroids[0].float()[before.codes.long()][:, :, None]
    )
    assert torch.equal(table_of(net).codes.long(), modelled(before, [gradient], 2.0, change).argmin(2))
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
    before = table_of(net)
    moves = CodeMoves(net, replace(ONE, reach=4.0, tries=3))
    moves.before(0.0, falling)
    learn(net, random(12, 24, seed=3))
    asked: list[PQWeight] = []

    def rising() -> float:
        asked.append(table_of(net))
        return float(len(asked))

    assert moves.before(0.0, rising) == 0
    assert len(asked) == 4 and all(not torch.equal(each.codes, before.codes) for each in asked[1:])
    after = table_of(net)
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(before.tables, after.tables, strict=True))
    assert float(moves.state()["place"][1]) == 4.0 / 2**3


def test_codes_stay_towards_the_end_and_where_nothing_was_learnt() -> None:
    net = a_student(Table(4, 16))
    before = table_of(net).codes
    moves = CodeMoves(net, replace(ONE, reach=2.0, until=0.5))
    moves.before(0.0, falling)
    assert moves.before(0.1, falling) == 0  # no gradient
    learn(net, random(12, 24, seed=3))
    assert moves.before(0.6, falling) == 0
    assert torch.equal(table_of(net).codes, before)


def test_many_codes_are_16_bits() -> None:
    net = a_student(Table(2, 300), out=40)
    moves = CodeMoves(net, replace(ONE, reach=2.0))
    moves.before(0.0, falling)
    learn(net, random(40, 24, seed=3))
    assert moves.before(0.0, falling) > 0 and table_of(net).codes.dtype == torch.uint16


def test_the_program_keeps_its_codes() -> None:
    net = nn.Embedding(12, 24)
    table = table_from_weight(random(12, 24), Table(4, 16))
    codes = table.codes.clone()
    attach_weight(net, "weight", table)
    moves = CodeMoves(net, replace(ONE, reach=2.0))
    moves.before(0.0, falling)
    learn(net, random(12, 24, seed=3))
    taken = table_of(net)
    kept = taken.codes.clone()
    assert moves.before(0.0, falling) > 0
    assert torch.equal(table.codes, codes) and torch.equal(taken.codes, kept)


@pytest.mark.parametrize("bad", [{"every": 0}, {"share": 0.0}, {"share": 1.1}, {"reach": 0.0}, {"tries": 0}, {"until": 1.5}])
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected 1 or more, above 0 to 1"):
        CodeConfig(**bad)  # type: ignore[arg-type]
