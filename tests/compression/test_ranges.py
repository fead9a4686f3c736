from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx import Graph, Node

from qn_deploy.compression.ranges import Ranges, least_loss

_aten = torch.ops.aten


def a_node(target: object = _aten.add.Tensor) -> Node:
    return Graph().call_function(target, (1, 2))  # type: ignore[arg-type]


def found(*values: Tensor, target: object = _aten.add.Tensor) -> tuple[float, float] | None:
    ranges, node = Ranges(len(values)), a_node(target)
    for value in values:
        ranges.see(node, value)
    return ranges.found().get(node.name)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lost(value: Tensor, low: float, high: float) -> float:
    """Mean squared error of 255 steps."""
    step = (high - low) / 255
    zero = round(-low / step)
    return float(((((value / step).round() + zero).clamp(0, 255) - zero) * step - value).square().mean())


def test_values_that_fill_their_range_keep_it() -> None:
    half = 0.5 / 255  # of a step is clipped: rounding loses as much
    assert found(torch.linspace(-1, 3, 1000)) == (pytest.approx(-1.0, abs=4 * half), pytest.approx(3.0, abs=4 * half))
    assert found(torch.linspace(0, 1, 100), torch.linspace(0, 5, 100)) == (0.0, pytest.approx(5.0, abs=5 * half))
    assert found(torch.tensor([0.0, 6.0, 6.0, 1.0])) == (0.0, pytest.approx(6.0, abs=6 * half))


def test_zero_is_always_within() -> None:
    assert found(torch.linspace(2, 3, 100)) == (0.0, 3.0) and found(-torch.linspace(2, 3, 100)) == (-3.0, 0.0)
    assert found(torch.zeros(5)) == (0.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.sampled_from([0.0, 1.0, 10.0]), st.floats(1e-6, 1e6), st.booleans())
def test_it_loses_no_more_than_any_other_clipping(seed: int, heavy: float, unit: float, positive: bool) -> None:
    value = random(20_000, seed=seed) * (1 + heavy * random(20_000, seed=seed + 1).abs() ** 3)
    value = unit * (value.relu() if positive else value)
    low, high = least_loss(value, float(value.min()), float(value.max()))
    assert float(value.min()) <= low * (1 - 1e-6) + 1e-30 and high <= float(value.max()) * (1 + 1e-6)
    best = min(lost(value, a * float(value.min()), b * float(value.max())) for a in (0.2, 0.4, 0.7, 1.0) for b in (0.2, 0.4, 0.7, 1.0))
    assert lost(value, low, high) <= 1.05 * best


def test_an_outlier_is_clipped_where_that_loses_less() -> None:
    value = torch.cat([random(1 << 21), torch.tensor([40.0])])
    low, high = found(value) or (0, 0)
    assert low >= float(value.min()) and high < 30
    assert lost(value, low, high) < 0.5 * lost(value, float(value.min()), 40.0)


@pytest.mark.parametrize("absurd", [float("-inf"), float("inf"), float("nan"), torch.finfo(torch.float32).min])
def test_masks_do_not_blow_it_up(absurd: float) -> None:
    assert found(torch.tensor([absurd, -1.0, 1.0, 0.5])) == (-1.0, 1.0)
    assert found(torch.tensor([absurd])) is None


def test_what_has_no_range_of_its_own() -> None:
    assert found(torch.arange(3)) is None and found(torch.zeros(0)) is None
    assert found(torch.ones(3), target=_aten.permute.default) is None
    ranges = Ranges(1)
    ranges.see(a_node(), (torch.ones(2), 3))
    ranges.see(a_node(), 3)
    assert ranges.found() == {}


def test_each_channel_is_in_the_sample() -> None:
    value = torch.zeros(1 << 14, 64)  # 2^20 values: every fourth would always be of the same channels
    value[:, 1] = torch.linspace(0, 1, 1 << 14)
    value[0, 1] = 100.0
    assert (found(value) or (0, 0))[1] < 50


def test_after_the_last_batch_only_the_range_is_kept() -> None:
    ranges, node = Ranges(2), a_node()
    ranges.see(node, torch.linspace(0, 1, 1000))
    assert len(ranges._seen) == 1
    ranges.see(node, torch.linspace(-1, 0, 1000))
    assert not ranges._seen and ranges.found()[node.name] == (pytest.approx(-1, abs=0.01), pytest.approx(1, abs=0.01))
