from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.compression.curvature import Curvature, Feedback
from qn_deploy.compression.moments import Moments
from qn_deploy.errors import InputError
from tests.compression.samples import PLAIN, inputs, random, seen


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 9))
def test_the_factor_is_that_of_the_inverse(groups: int, n: int, seed: int) -> None:
    known = seen(inputs(n, groups, seed))
    torch.testing.assert_close(known.upper.mT @ known.upper @ known.gram, torch.eye(n).expand(groups, n, n), rtol=1e-3, atol=1e-3)
    assert torch.equal(known.upper, known.upper.triu()) and bool((known.upper.diagonal(dim1=1, dim2=2) > 0).all())


def drawn(count: int, seed: int) -> tuple[Moments, Tensor]:
    """Moments of a few inputs in two batches, and H of all inputs of their kind, times the number of these."""
    spread = torch.linspace(0.1, 2, 24).diag()
    halves = [random(1, count // 2, 24, seed=2 * seed + half) @ spread for half in range(2)]
    grams = [half.mT @ half for half in halves]
    noise = (grams[0] - grams[1]).square().sum((1, 2))
    return Moments(grams[0] + grams[1], torch.zeros(1, 24, 24), noise), count * (spread @ spread)[None]


@pytest.mark.parametrize("count", [8, 32])
def test_few_inputs_are_believed_less(count: int) -> None:
    shares = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0)
    believed, damped = [], []
    for seed in range(20):
        moments, every = drawn(count, seed)
        assert moments.gram is not None
        usual = moments.gram[0].diagonal().mean() * torch.eye(24)
        grams = [Curvature.of(moments, PLAIN).gram[0], *(moments.gram[0] + share * usual for share in shares)]
        first, *others = (float((gram / gram.trace() - every[0] / every[0].trace()).norm()) for gram in grams)
        believed.append(first)
        damped.append(others)
    mean, *means = (float(torch.tensor(off).mean()) for off in (believed, *zip(*damped, strict=True)))
    assert mean < 0.8 * means[0]
    assert mean < 1.1 * min(means)  # no share that is the same for all samples is much nearer


def test_many_inputs_are_believed_as_far_as_the_configuration_says() -> None:
    moments, _ = drawn(20_000, 0)
    assert moments.gram is not None
    least = PLAIN.damping * float(moments.gram[0].diagonal().mean())
    torch.testing.assert_close(Curvature.of(moments, PLAIN).gram, moments.gram + least * torch.eye(24))


def test_the_bias_makes_the_means_equal() -> None:
    weight, became, bias = random(6, 4, 3, seed=1), random(6, 4, 3, seed=2), random(6, seed=3)
    mean, theirs = random(2, 1, 12, seed=4), random(2, 1, 12, seed=5)
    known = Curvature(torch.eye(12), torch.eye(12), torch.zeros(2, 12, 12), mean, theirs)
    found = known.bias(bias, weight, became)
    for row in range(6):
        group = row // 3
        ours = (became[row].flatten() * mean[group, 0]).sum() + found[row]
        float_models = (weight[row].flatten() * theirs[group, 0]).sum() + bias[row]
        torch.testing.assert_close(ours, float_models)
    assert seen(inputs(12)).bias(bias, weight, became) is bias  # the mean is not known


@pytest.mark.parametrize("wrong", [{"damping": 0.0}, {"correction": 1.5}, {"correction_damping": -1.0}, {"rounds": 0}])
def test_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected more than 0, 0 to 1, 1 or more"):
        Feedback(**wrong)
