from __future__ import annotations

from collections.abc import Callable
from math import inf, log10
from typing import Any

import pytest
import torch
from torch import nn

from qn_deploy.compression.metric import Drop, signal, standard_error
from qn_deploy.errors import InputError
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(nn.ReLU(), (torch.zeros(2, 3),))


def given(*answers: Any) -> Callable[..., Any]:
    """A metric that gives one answer after the other: the float program's first."""
    left = iter(answers)
    return lambda run: next(left)


def test_one_number_is_taken_as_it_is(program: Program) -> None:
    drop = Drop(given(90.0, 88.5, -inf, torch.tensor(91.0)), program, 0.95)
    assert [drop.of(program) for _ in range(3)] == [1.5, inf, -1.0]


def test_points_of_each_sample_have_a_margin_of_their_differences(program: Program) -> None:
    whole = torch.tensor([0.0, 100.0, 100.0, 100.0])
    lost = torch.tensor([0.0, 0.0, 100.0, 0.0])
    assert standard_error(lost) == pytest.approx(50 / 2)
    for confidence, deviations in ((0.5, 0.0), (0.95, 1.6449), (0.8413, 1.0)):
        drop = Drop(given(whole, whole - lost, (whole - lost).tolist()), program, confidence)
        assert drop.of(program) == pytest.approx(25 + deviations * 25, rel=1e-3)
        assert drop.of(program) == pytest.approx(25 + deviations * 25, rel=1e-3)  # a list, too
    assert standard_error(torch.tensor(3.0)) == 0


def test_the_margin_is_as_sure_as_it_says(program: Program) -> None:
    generator, true, kept = torch.Generator().manual_seed(0), 100 * (0.04 - 0.02), 0
    for _ in range(160):
        chance = torch.rand(500, generator=generator)
        lost = 100.0 * ((chance < 0.04).double() - (chance > 0.98).double())  # wrong now, right now
        kept += Drop(given(torch.zeros(500), -lost), program, 0.95).of(program) >= true
    assert 0.91 < kept / 160 < 0.99


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ((float("nan"),), "the metric gives nan for the float model; expected a number of points"),
        ((torch.tensor([1.0, inf]),), "the metric gives NaN or infinity among the points for the float model"),
        ((None,), r"the metric gives a NoneType; expected a number of points, or a tensor \[N\] of the points of each sample"),
        (("90 %",), "the metric gives a str; expected"),
        ((torch.zeros(2, 2),), r"the metric gives a tensor \[2, 2\]; expected"),
        ((torch.zeros(0),), r"the metric gives a tensor \[0\]; expected"),
        (
            (torch.zeros(3), torch.zeros(2)),
            r"points \[2\] for a compressed model, and \[3\] for the float one; it has to judge the same",
        ),
    ],
    ids=str,
)
def test_what_is_no_number_of_points_is_refused(program: Program, answers: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Drop(given(*answers), program, 0.95).of(program)


def test_nothing_of_a_metric_wants_gradients(program: Program) -> None:
    held = capture(nn.Linear(3, 2), (torch.zeros(2, 3),))
    asked = []
    Drop(lambda run: float(asked.append(run(torch.zeros(2, 3))[0].requires_grad) or 1), held, 0.95)
    assert asked == [False]


def test_decibels_of_signal() -> None:
    program = capture(nn.Linear(4, 4), (torch.randn(8, 4),))
    x = torch.randn(8, 4)
    (whole,) = unlifted(program.exported)(x)
    noise = torch.randn_like(whole)
    noise *= (0.1 * whole.square().sum() / noise.square().sum()).sqrt()
    assert signal(program, [(x,)])(lambda _: (whole + noise,)) == pytest.approx(10 * log10(0.9), rel=1e-4)
    assert signal(program, [(x,)])(lambda _: (3 * whole,)) == -float("inf")
