from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from qn_deploy import noise
from qn_deploy.errors import InputError
from tests.noise.models import INT8, TABLES, a_batch, a_net

torch.set_num_threads(1)


def a_conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, momentum=0.3))


def images(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 1, 7, 7, generator=generator) for _ in range(count)]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """Running means, variances and their counts."""
    return {
        f"{path}.{name}": buffer.clone()
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for name, buffer in module.named_buffers(recurse=False)
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_statistics_are_those_of_the_model_without_noise(training: bool, removed: bool) -> None:
    clean = a_conv_net()
    update_bn(images(), clean)  # without noise and dropout torch's is right
    model = a_conv_net()
    noise.attach(model, TABLES, p=0.5)
    noise.attach_activations(model, noise.Activations(kinds=(nn.Conv2d, nn.BatchNorm2d)), p=1)
    model.train(training)
    for _ in range(3):
        model(10 * images()[0])
    assert not training or not same(statistics(model), statistics(clean))
    if removed:
        noise.remove(model)
    state = torch.get_rng_state()
    assert noise.settle(model, images()) == ["1", "4"]
    assert same(statistics(model), statistics(clean))
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_but_the_statistics_changes() -> None:
    model = a_conv_net().train()
    noise.attach(model, INT8, p=0.5)
    noise.attach_activations(model, noise.Activations(kinds=(nn.BatchNorm2d,)))
    model[3].eval()
    model(images()[0])
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graphs = []
    model.register_forward_hook(lambda module, args, out: graphs.append(out.requires_grad))
    noise.settle(model, images())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{norm}.{name}" for norm in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert [module.training for module in model.modules()] == modes
    assert [model[1].momentum, model[4].momentum] == [0.1, 0.3]
    assert graphs == [False] * 3


def test_dropout_and_layer_drop_are_off() -> None:
    plain = nn.Sequential(a_conv_net(), nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))
    noisy = copy.deepcopy(plain).train()
    noise.attach_layer_drop(noisy, "", p=1.0, skip=lambda x, *args: x)
    noisy[1].insert(0, nn.Dropout(0.9))
    assert noise.settle(noisy, images()) == ["0.1", "0.4", "1.2"]
    noise.settle(plain, images())
    assert all(torch.equal(a, b) for a, b in zip(statistics(noisy).values(), statistics(plain).values(), strict=True))


@pytest.mark.parametrize("kind", ["tuple", "list", "dict", "iterator"])
def test_batches_are_taken_as_tuples_lists_and_dicts_by_name(kind: str) -> None:
    expected = a_net()
    noise.settle(expected, [a_batch(), a_batch()])
    batches: Any = [
        {"tuple": a_batch(), "list": list(a_batch()), "dict": dict(zip(("token", "image"), reversed(a_batch()), strict=True))}.get(
            kind, a_batch()
        )
    ] * 2
    model = a_net()
    assert noise.settle(model, iter(batches) if kind == "iterator" else batches) == ["norm"]
    assert same(statistics(model), statistics(expected)) and int(model.norm.num_batches_tracked) == 2
    assert not same(statistics(model), statistics(a_net()))


def test_a_single_tensor_is_the_only_input() -> None:
    one, other = a_conv_net(), a_conv_net()
    noise.settle(one, torch.split(torch.cat(images()), 4))
    noise.settle(other, [(batch,) for batch in images()])
    assert same(statistics(one), statistics(other))


def test_the_average_over_the_batches_literal() -> None:
    model = nn.BatchNorm1d(1)
    noise.settle(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[6.0], [10.0]])])
    assert model.running_mean is not None and model.running_var is not None
    assert model.running_mean.tolist() == [5.0] and model.running_var.tolist() == [5.0]  # of 2 and 8, both


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False))], ids=["none", "untracked"])
def test_without_running_statistics_nothing_happens(model: nn.Module) -> None:
    def batches() -> Iterator[Tensor]:
        raise AssertionError("a batch was read")
        yield

    assert noise.settle(model, batches()) == []
    assert all(module.training for module in model.modules())


def test_a_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    class Beside(nn.Module):
        """A head for training alone, as Inception's."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.other = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + (self.other(x) if self.training else 0)

    model = Beside()
    model(10 * images()[0])
    before = statistics(model.other)
    assert noise.settle(model, images()) == ["head"]
    assert same(statistics(model.other), before)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there are no batches; give tuples with one tensor for each input"),
        ([a_batch(), (*a_batch(), torch.zeros(4))], r"batch 1 does not fit Net, whose inputs are image, token: too many .*without labels"),
        ([a_batch(), {"image": a_batch()[0]}], r"batch 1 does not fit Net, .*missing a required argument: 'token'"),
        ([a_batch(), "images"], "batch 1 is a str; give tuples of input tensors, dicts by name, or single tensors"),
        ([a_batch(), (a_batch()[0] * float("inf"), a_batch()[1])], "norm: its statistics over these batches are NaN or infinite"),
    ],
    ids=["none", "labels", "missing", "kind", "infinite"],
)
def test_bad_batches_are_refused_and_leave_all_as_it_was(batches: list[Any], message: str) -> None:
    model = a_net()
    model.norm.train(False)
    model.norm.momentum = 0.2
    noise.settle(model, [a_batch()])
    before = statistics(model)
    with pytest.raises(InputError, match=message):
        noise.settle(model, batches)
    assert same(statistics(model), before) and model.norm.momentum == 0.2
    assert [name for name, module in model.named_modules() if not module.training] == ["norm"]


def test_an_exception_of_the_model_leaves_all_as_it_was() -> None:
    model = a_conv_net()
    model(images()[0])
    before = statistics(model)
    with pytest.raises(RuntimeError):
        noise.settle(model, [images()[0], torch.zeros(4, 3, 7, 7)])
    assert same(statistics(model), before) and model[1].momentum == 0.1
    assert all(module.training for module in model.modules())
