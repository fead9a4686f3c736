from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qn_deploy.compression import IntWeight, PQWeight
from qn_deploy.compression.codes import refit
from qn_deploy.compression.curvature import Feedback
from qn_deploy.compression.feedback import integers_with_feedback, table_with_feedback
from qn_deploy.errors import CompressionError
from qn_deploy.recipe import Int4, Int8, Table
from qn_deploy.weights.tables import table_from_weight
from tests.compression.samples import inputs, random, seen


def lost(weight: Tensor, found: PQWeight | IntWeight, x: Tensor) -> float:
    """Squared error of a layer's outputs relative to them."""
    rows = weight.reshape(len(x), -1, x.shape[2])
    error = rows - found.dequantize().reshape(rows.shape)
    return float((x @ error.mT).square().sum() / (x @ rows.mT).square().sum())


@pytest.mark.parametrize("method", [Int8(), Int4()])
@pytest.mark.parametrize("per_channel", [True, False])
def test_inputs_that_do_not_go_together_leave_plain_rounding(method: Int8 | Int4, per_channel: bool) -> None:
    weight = random(6, 5, 3, 3)
    apart = seen(torch.eye(45)[None])
    found, plain = integers_with_feedback(weight, method, apart, per_channel), IntWeight.from_float(weight, per_channel, method)
    assert torch.equal(found.values, plain.values) and torch.equal(found.scale, plain.scale) and found.bits == method.bits


@pytest.mark.parametrize(("shape", "groups"), [((32, 32), 1), ((16, 8, 3, 3), 1), ((16, 4, 3), 4)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_table_of_the_same_size_loses_less(shape: tuple[int, ...], groups: int, per_channel: bool) -> None:
    weight, method = random(*shape), Table(2 if shape[1:] == (32,) else 3, 8, codebooks=2)
    x = inputs(weight[0].numel(), groups)
    plain = table_from_weight(weight, method, per_channel=per_channel)
    found = table_with_feedback(weight, method, seen(x), per_channel=per_channel)
    assert found.nbytes <= plain.nbytes and found.shape == shape and found.scale.shape == plain.scale.shape
    assert lost(weight, found, x) < 0.5 * lost(weight, plain, x)


def test_int4_loses_less() -> None:
    weight, x = random(16, 32), inputs(32)
    found = integers_with_feedback(weight, Int4(), seen(x))
    assert lost(weight, found, x) < 0.5 * lost(weight, IntWeight.from_float(weight, method=Int4()), x)


def test_centroids_of_zeros_stay_and_so_do_rows_of_zeros() -> None:
    books = torch.tensor([[[0.0, 0.0], [1.0, 1.0]]])
    found = refit(torch.tensor([[[3.0, 3.0], [2.0, 2.0]]]), torch.eye(2)[None], books, torch.tensor([[0], [1]]), torch.ones(1, 2, 1))
    assert found.tolist() == [[[0.0, 0.0], [3.0, 3.0]]]
    weight, x = random(8, 16), inputs(16)
    weight[2] = 0
    table = table_with_feedback(weight, Table(2, 4), seen(x))
    assert not table.int8()[2].any() and table.int8()[1].any()


def test_a_layer_makes_up_for_what_happened_to_its_inputs() -> None:
    # The compressed layers before give x = y A: with W A^-T the layer gives what the float model's does.
    weight, y, change = random(8, 6), inputs(6), torch.eye(6) + random(6, 6) / 10
    x = y @ change

    def gap(correction: float) -> float:
        config = Feedback(correction=correction, damping=1e-4, correction_damping=1e-6)
        found = integers_with_feedback(weight, Int8(), seen(x, y, config)).dequantize()
        return float((x @ found.T - y @ weight.T).square().mean().sqrt())

    assert gap(1.0) < 0.1 * gap(0.0)
    assert 0.3 * gap(0.0) < gap(0.5) < 0.7 * gap(0.0)


@pytest.mark.parametrize("size", [0.0, 1e-21])  # products of the second are next to the least number that a float32 holds
def test_inputs_that_are_next_to_zero_say_nothing(size: float) -> None:
    weight, never = random(8, 6), seen(size * random(1, 3, 6), size * random(1, 3, 6, seed=1), config=Feedback())
    found = integers_with_feedback(weight, Int8(), never)
    assert torch.equal(found.values, IntWeight.from_float(weight).values)


def test_the_same_seed_gives_the_same_table() -> None:
    weight, known = random(16, 24), seen(inputs(24))
    first, second = (table_with_feedback(weight, Table(3, 8), known, seed=3) for _ in range(2))
    assert (
        torch.equal(first.codes, second.codes) and torch.equal(first.centroids, second.centroids) and torch.equal(first.scale, second.scale)
    )


def test_what_is_not_finite_is_named() -> None:
    weight, x = random(4, 6), inputs(6)
    with pytest.raises(CompressionError, match="inputs hold NaN"):
        seen(x, torch.full_like(x, float("nan")))
    weight[0, 0] = float("inf")
    for method in (Int8(), Int4()):
        with pytest.raises(CompressionError, match="the weight holds NaN or infinity"):
            integers_with_feedback(weight, method, seen(x))
    with pytest.raises(CompressionError, match="the weight holds NaN or infinity"):
        table_with_feedback(weight, Table(2, 4), seen(x))
