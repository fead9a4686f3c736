from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qn_deploy.errors import InputError
from qn_deploy.noise.activations import ActivationNoise, Activations, attach_activations
from qn_deploy.noise.layerdrop import LayerDrop, attach_layer_drop
from qn_deploy.noise.rate import Noisy, Rated, rated, set_rate

torch.set_num_threads(1)


class Halver(Noisy, nn.Module):
    """A noise that is a module, as a parametrization is."""


def a_model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), Halver())
    attach_activations(model, p=0.2)
    attach_layer_drop(nn.Sequential(*model[:2]), "", p=0.3)
    return model


def rates(model: nn.Module, kind: type[Rated]) -> list[float]:
    return [part.p for part in rated(model, kind)]


def test_a_rate_starts_at_0() -> None:
    assert Halver().p == 0.0


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_rate_outside_0_to_1_is_refused(p: float) -> None:
    noise = Halver()
    with pytest.raises(InputError, match=r"is not in 0\.\.1"):
        noise.p = p
    with pytest.raises(InputError, match=r"is not in 0\.\.1"):
        set_rate(noise, p)
    assert noise.p == 0.0


def test_set_rate_reaches_all_quantization_noise_and_no_pruning() -> None:
    model = a_model()
    set_rate(model, 0.5)
    assert rates(model, Noisy) == [0.5, 0.5, 0.5]
    assert rates(model, LayerDrop) == [0.3, 0.3]


def test_set_rate_reaches_one_kind_alone() -> None:
    model = a_model()
    set_rate(model, 0.5, LayerDrop)
    assert (rates(model, LayerDrop), rates(model, Noisy)) == ([0.5, 0.5], [0.2, 0.2, 0.0])
    set_rate(model, 0.6, ActivationNoise)
    assert rates(model, Noisy) == [0.6, 0.6, 0.0]


def test_attaching_more_leaves_the_rates_that_are_there() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4)))
    for index, p in enumerate((0.1, 0.2)):
        attach_activations(model, Activations(names=(f"{index}.*",)), p)
        attach_layer_drop(model, str(index), p)
    assert rates(model, ActivationNoise) == rates(model, LayerDrop) == [0.1, 0.2]


def test_a_copy_has_rates_of_its_own() -> None:
    model = a_model()
    twin = copy.deepcopy(model)
    set_rate(twin, 1.0, Rated)
    assert rates(model, Rated) == [0.3, 0.2, 0.3, 0.2, 0.0]


def test_a_model_without_such_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"Linear has no noise .*attach"):
        set_rate(nn.Linear(2, 2), 0.5)
    with pytest.raises(InputError, match=r"has no LayerDrop .*attach"):
        set_rate(Halver(), 0.5, LayerDrop)
