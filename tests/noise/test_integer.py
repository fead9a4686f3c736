from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.ao.quantization import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver

from qn_deploy.noise.functions import Noise
from qn_deploy.noise.integer import HistogramGrid, MinMaxGrid, StoredGrid
from qn_deploy.recipe import Int4, Int8
from qn_deploy.weights.compressed import IntWeight

torch.set_num_threads(1)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
METHODS = [Int8(), Int8("least_squares"), Int4(), Int4("minmax")]


def a_weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3 + 0.05


def learnt(noise: Noise, weight: Tensor) -> Noise:
    noise.refresh(weight)
    return noise


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_rate_1_is_the_weight_that_compression_stores(method: Int8 | Int4, per_channel: bool) -> None:
    weight = a_weight(12, 5, 3, 3)
    noise = learnt(StoredGrid(weight, method, per_channel), weight)
    assert torch.equal(noise(weight, 1.0), IntWeight.from_float(weight, per_channel, method).dequantize())


def test_the_stored_grid_literal() -> None:
    weight = torch.tensor([[127.0, 0.4, -2.6], [0.0, 0.0, 0.0], [-12.7, 0.26, 0.05]])
    expected = torch.tensor([[127.0, 0.0, -3.0], [0.0, 0.0, 0.0], [-12.7, 0.3, 0.0]])
    torch.testing.assert_close(StoredGrid(weight, Int8())(weight, 1.0), expected, rtol=1e-6, atol=1e-6)


def test_a_searched_range_follows_the_weight_until_it_is_searched_again() -> None:
    weight = a_weight(6, 40)
    noise = learnt(StoredGrid(weight, Int4()), weight)
    torch.testing.assert_close(noise(3 * weight, 1.0), 3 * noise(weight, 1.0))


@pytest.mark.parametrize("bits", [8, 4])
def test_rate_1_per_channel_is_torchs_quantization_aware_training(bits: int) -> None:
    weight, top = a_weight(7, 5, 3, 3), 2**bits - 1
    observer = PerChannelMinMaxObserver(ch_axis=0, quant_min=0, quant_max=top, dtype=torch.quint8, qscheme=torch.per_channel_affine)
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    expected = torch.fake_quantize_per_channel_affine(weight, scale, zero_point, 0, 0, top)
    torch.testing.assert_close(MinMaxGrid(bits, per_channel=True)(weight, 1.0), expected)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("grid", ["minmax", "histogram"])
def test_rate_1_of_a_tensor_is_torchs_quantization_aware_training(bits: int, grid: str) -> None:
    weight, top = a_weight(30, 40), 2**bits - 1
    kind = MinMaxObserver if grid == "minmax" else HistogramObserver
    observer = kind(quant_min=0, quant_max=top, dtype=torch.quint8)
    observer(weight)
    scale, zero_point = observer.calculate_qparams()
    expected = torch.fake_quantize_per_tensor_affine(weight, float(scale), int(zero_point), 0, top)
    noise = MinMaxGrid(bits, per_channel=False) if grid == "minmax" else learnt(HistogramGrid(weight, bits), weight)
    torch.testing.assert_close(noise(weight, 1.0), expected)


def test_a_zero_point_literal() -> None:
    weight = torch.tensor([[-1.0, 14.0, 0.6, 3.4], [1.0, 15.0, 7.6, 0.2]])  # scale 1, zero points 1 and 0
    expected = [[-1.0, 14.0, 1.0, 3.0], [1.0, 15.0, 8.0, 0.0]]
    assert MinMaxGrid(4, per_channel=True)(weight, 1.0).tolist() == expected


def test_the_grid_of_a_channel_of_one_sign_holds_zero() -> None:
    weight = torch.tensor([[-15.0, -7.3], [15.0, 7.3]])  # scale 1, zero points 15 and 0
    assert MinMaxGrid(4, per_channel=True)(weight, 1.0).tolist() == [[-15.0, -7.0], [15.0, 7.0]]


def test_a_histogram_gives_less_error_than_the_whole_range() -> None:
    weight = torch.cat([a_weight(40, 40), torch.full((1, 40), 6.0)])
    error = {
        name: float((noise(weight, 1.0) - weight).square().mean())
        for name, noise in (("whole", MinMaxGrid(4, per_channel=False)), ("histogram", learnt(HistogramGrid(weight, 4), weight)))
    }
    assert error["histogram"] <= error["whole"]


def test_a_histogram_runs_over_all_that_it_was_shown() -> None:
    small, large = a_weight(20, 20), 10 * a_weight(20, 20, seed=1)
    noise = HistogramGrid(small, 8)
    scales = []
    for weight in (small, large, small):
        noise.refresh(weight)
        scales.append(float(noise.scale))
    assert scales[1] > 5 * scales[0] and scales[2] > 5 * scales[0]


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 9),
    row=st.integers(1, 30),
    p=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    kind=st.integers(0, 4),
    seed=st.integers(0, 2**20),
)
def test_a_weight_moves_to_its_grid_or_stays(out: int, row: int, p: float, dtype: torch.dtype, kind: int, seed: int) -> None:
    weight = a_weight(out, row, seed=seed).to(dtype)
    noise = [
        lambda: StoredGrid(weight, Int8()),
        lambda: StoredGrid(weight, Int4(), per_channel=False),
        lambda: MinMaxGrid(4, per_channel=True),
        lambda: MinMaxGrid(8, per_channel=False),
        lambda: HistogramGrid(weight, 8),
    ][kind]()
    noise.refresh(weight)
    torch.manual_seed(seed)
    noised = noise(weight, p)
    assert noised.dtype == dtype and noised.shape == weight.shape and bool(noised.isfinite().all())
    assert bool(((noised == weight) | (noised == noise(weight, 1.0))).all())


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_channel_of_zeros_stays_zero(per_channel: bool) -> None:
    weight = a_weight(3, 8)
    weight[1] = 0
    for noise in (MinMaxGrid(8, per_channel), learnt(StoredGrid(weight, Int4(), per_channel), weight)):
        assert not noise(weight, 1.0)[1].any()


def test_what_was_learnt_stays_float32_when_the_model_becomes_half() -> None:
    weight = a_weight(3, 8)
    noises = [learnt(StoredGrid(weight, Int4()), weight), learnt(HistogramGrid(weight, 8), weight)]
    for noise in noises:
        noise.half()
        assert all(buffer.dtype != torch.float16 for buffer in noise.buffers())
        assert noise(weight.half(), 1.0).dtype == torch.float16
