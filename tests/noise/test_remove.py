from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from qn_deploy import noise
from qn_deploy.recipe import conv_net
from tests.noise.models import INT8, TABLES, Net, a_batch, a_net, bits, seen


def test_remove_gives_the_same_plain_model_back() -> None:
    model = a_net()
    parameters, content, keys = list(model.parameters()), bits(model), list(model.state_dict())
    classes = [type(module) for module in model.modules()]
    noise.attach(model, conv_net(), p=0.5)
    model(*a_batch())
    noise.remove(model)
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert bits(model) == content
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == classes
    assert noise.attach(model, conv_net())  # and noise can be put on again


@pytest.mark.parametrize("make", [lambda: nn.LSTM(8, 8), lambda: nn.MultiheadAttention(8, 2), lambda: nn.Conv1d(8, 8, 2)])
def test_remove_gives_all_parameters_their_places_back(make: Callable[[], nn.Module]) -> None:
    model = make()
    before = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    noise.attach(model, TABLES, p=0.5)
    noise.remove(model)
    assert [(name, id(parameter)) for name, parameter in model.named_parameters()] == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_remove_takes_activation_noise_off_too() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    noise.attach(model, INT8)
    noise.attach_activations(model)
    noise.remove(model)
    assert not list(model.named_buffers()) and [type(module) for module in model] == [nn.Linear, nn.ReLU]


def test_remove_leaves_other_parametrizations_and_plain_models_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)))
    noise.remove(model)
    assert type(model[0]) is nn.Linear
    assert parametrize.is_parametrized(model[1], "weight")


def test_remove_keeps_a_parametrization_of_the_bias() -> None:
    model = nn.Linear(8, 4)
    weight, bias = model.weight, model.bias.detach().clone()
    parametrize.register_parametrization(model, "bias", nn.Tanh())
    noise.attach(model, TABLES)
    noise.remove(model)
    assert model.weight is weight and not parametrize.is_parametrized(model, "weight")
    assert torch.equal(model.bias, bias.tanh())


def test_a_deep_copy_is_noised_tied_and_separate() -> None:
    model = a_net()
    noise.attach(model, TABLES, p=0.0)
    twin = copy.deepcopy(model)
    noise.set_rate(twin, 1.0)
    assert not twin.point.weight.any() and model.point.weight.all()
    noise.remove(twin)
    assert twin.token.weight is twin.head.weight
    assert twin.token.weight is not model.token.weight  # the noise of the model itself still works
    noise.set_rate(model, 1.0)
    assert not model.token.weight.any()


def test_the_state_dict_holds_the_clean_weights_and_nothing_else() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Linear(8, 4, bias=False))
    clean = seen(model[0]).detach().clone()
    noise.attach(model, INT8, p=0.7)
    state = model.state_dict()
    assert list(state) == ["0.bias", "0.parametrizations.weight.original", "1.parametrizations.weight.original"]
    assert torch.equal(state["0.parametrizations.weight.original"], clean)


def test_the_state_dict_loads_into_another_noised_model() -> None:
    model, twin = a_net(), Net()
    for net in (model, twin):
        noise.attach(net, conv_net(), p=0.3)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.eval()(*a_batch()), model.eval()(*a_batch()))


@pytest.mark.parametrize("strict", [False, True])
def test_a_noised_model_exports_in_eval_mode_without_noise(strict: bool) -> None:
    model = a_net().eval()
    expected = model(*a_batch())
    noise.attach(model, conv_net(), p=1.0)
    exported = torch.export.export(model, a_batch(), strict=strict)
    assert not any("uniform" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(*a_batch()), expected)
