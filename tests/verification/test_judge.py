"""What agreement is enough."""

import math

import pytest
import torch

from qn_deploy.verification.judge import identical, judge_output, similar
from qn_deploy.verification.numerics import compare


def noisy(sqnr_db: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A tensor, and the same with noise of exactly this ratio."""
    draw = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 4, 100, generator=draw, dtype=torch.float64)
    return clean + noise * clean.norm() / noise.norm() * 10 ** (-sqnr_db / 20), clean


@pytest.mark.parametrize(
    ("loss_db", "limit"),
    [(math.inf, 40.0), (30.0, 40.0), (20.0, 40.0), (12.5, 32.5), (8.8, 28.8), (0.0, 20.0), (-15.0, 20.0), (-math.inf, 20.0)],
)
def test_a_runtime_may_add_a_tenth_of_the_error_of_quantization(loss_db: float, limit: float) -> None:
    criterion = similar(loss_db)
    for away, passes in ((0.1, True), (-0.1, False)):
        check = judge_output(3, "", *noisy(limit + away), None, criterion)
        assert check.passed is passes
        assert check.limit.startswith(f"SQNR >= {limit:g} dB" if limit == 40 else f"SQNR >= {limit:.1f} dB: a tenth of the error")


def test_nothing_is_similar_to_nan() -> None:
    found, clean = noisy(100.0)
    found[0, 0] = math.nan
    assert not similar(-math.inf)(compare(found, clean))[0]
    assert not similar(-math.inf)(compare(clean, found))[0]


def test_integers_are_equal_or_not() -> None:
    one = torch.arange(5)
    assert judge_output(3, "", one, one.clone(), None, similar(-math.inf)).passed
    assert not judge_output(3, "", one + 1, one, None, similar(-math.inf)).passed
    assert judge_output(3, "", one + 1, one, None, identical).limit == "bit-identical"
