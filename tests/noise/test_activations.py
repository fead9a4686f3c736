from __future__ import annotations

import copy
import io
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

from qn_deploy import noise
from qn_deploy.errors import InputError
from qn_deploy.noise.activations import ActivationNoise, Activations, Observer, attach_activations, remove_activations
from qn_deploy.noise.rate import set_rate
from qn_deploy.recipe import Int8, Recipe, Rule

torch.set_num_threads(1)

MINMAX = Activations("minmax")
OBSERVERS = {"histogram": HistogramObserver, "minmax": MinMaxObserver, "moving_average": MovingAverageMinMaxObserver}


def a_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def batches(count: int, *shape: int) -> list[Tensor]:
    """Random, each wider than the one before."""
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=draw) * (1 + index) for index in range(count)]


def gradient(module: nn.Module) -> Tensor:
    grad = module.get_parameter("weight").grad
    assert grad is not None
    return grad


def the_noise(module: nn.Module) -> ActivationNoise:
    found = module.get_submodule("activation_noise")
    assert isinstance(found, ActivationNoise)
    return found


@pytest.mark.parametrize(("observer", "bits"), [("histogram", 8), ("minmax", 8), ("minmax", 4), ("moving_average", 8)])
def test_rate_1_is_torchs_fake_quantization_in_values_and_gradients(observer: Observer, bits: int) -> None:
    ours = nn.Linear(8, 16)
    theirs = copy.deepcopy(ours)
    quantize = FakeQuantize(OBSERVERS[observer], quant_min=0, quant_max=2**bits - 1, dtype=torch.quint8)
    attach_activations(ours, Activations(observer, bits), p=1.0)
    for batch in batches(4, 32, 8):
        found, expected = ours(batch), quantize(theirs(batch))
        assert torch.equal(found, expected) and found.unique().numel() <= 2**bits
        for output in (found, expected):
            output.square().sum().backward()
        assert torch.equal(gradient(ours), gradient(theirs))


def test_minmax_literal() -> None:
    model = nn.ReLU()
    attach_activations(model, Activations("minmax", bits=2, kinds=(nn.ReLU,)), p=1.0)
    assert model(torch.tensor([-5.0, 0.4, 1.6, 3.0])).tolist() == [0.0, 0.0, 2.0, 3.0]


def with_outlier(value: float) -> Tensor:
    return torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([value])])


def test_the_histogram_clips_an_outlier_where_that_loses_less_and_the_gradient_stops_there() -> None:
    losses = {}
    for observer in ("histogram", "minmax"):
        model = nn.Identity()
        attach_activations(model, Activations(observer, bits=4, kinds=(nn.Identity,)), p=1.0)
        x = with_outlier(8.0).requires_grad_()
        output = model(x)
        output.sum().backward()
        losses[observer] = float((output - x).square().mean().detach())
        assert x.grad is not None and bool((x.grad[1000:9000] == 1).all())
        assert float(x.grad[-1]) == (0.0 if observer == "histogram" else 1.0)
    assert losses["histogram"] < losses["minmax"] / 4  # .0065 against .0333


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_rate_is_the_share_of_activations_that_are_rounded(p: float) -> None:
    model = nn.Identity()
    attach_activations(model, Activations("minmax", kinds=(nn.Identity,)), p)
    x = torch.rand(200, 200)
    torch.manual_seed(0)
    share = float((model(x) != x).float().mean())
    assert abs(share - p) < 5 * (p * (1 - p)) ** 0.5 / 200


@settings(max_examples=20, deadline=None)
@given(p=st.floats(0, 1), seed=st.integers(0, 2**20))
def test_an_activation_is_rounded_or_left_as_it_is(p: float, seed: int) -> None:
    model = nn.Identity()
    attach_activations(model, Activations("minmax", kinds=(nn.Identity,)), p)
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed))
    found = model(x)
    set_rate(model, 1.0)
    assert bool(((found == x) | (found == model(x))).all())


def test_the_gradient_of_what_is_left_as_it_is_passes_even_outside_the_range() -> None:
    model = nn.Identity()
    attach_activations(model, Activations("moving_average", kinds=(nn.Identity,)), p=0.5)
    model(torch.linspace(-1, 1, 100))
    x = torch.full((100,), 8.0, requires_grad=True)
    output = model(x)  # the range goes to 1.07
    output.sum().backward()
    assert x.grad is not None and 20 < int(x.grad.sum()) < 80
    assert torch.equal(x.grad == 1, output == x)


def test_between_two_looks_the_range_stays() -> None:
    model = nn.Identity()
    attach_activations(model, Activations("minmax", every=3, kinds=(nn.Identity,)), p=1.0)
    tops = [float(model(torch.tensor([0.0, top])).max()) for top in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert tops == [1.0, 1.0, 1.0, 4.0, 4.0]


def test_eval_mode_is_exact_and_leaves_the_range_alone() -> None:
    model = a_net()
    expected = model(batches(1, 4, 8)[0])
    attach_activations(model, MINMAX, p=1.0)
    model(torch.ones(4, 8))
    before = copy.deepcopy(model.eval().state_dict())
    assert torch.equal(model(batches(1, 4, 8)[0]), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_rate_0_watches_and_shows_the_activations_as_they_are() -> None:
    model = a_net()
    x = batches(1, 4, 8)[0]
    expected = model(x)
    attach_activations(model, p=0.0)
    before = torch.get_rng_state()
    assert torch.equal(model(x), expected) and torch.equal(torch.get_rng_state(), before)
    assert float(the_noise(model[2]).quantize.scale) != 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_overflow_reaches_the_loss_and_leaves_the_range_alone(value: float) -> None:
    model = a_net()
    attach_activations(model, MINMAX, p=1.0)
    model(torch.ones(4, 8))
    before = copy.deepcopy(model.state_dict())
    assert not model(torch.full((4, 8), value)).isfinite().any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("observer", get_args(Observer))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_precisions(dtype: torch.dtype, observer: Observer) -> None:
    model = a_net()
    attach_activations(model, Activations(observer), p=0.5)
    model.to(dtype)
    for batch in batches(3, 64, 8):
        output = model(batch.to(dtype))
        output.sum().backward()
    assert output.dtype == dtype and output.isfinite().all() and gradient(model[0]).dtype == dtype
    assert {tensor.dtype for tensor in the_noise(model[0]).buffers() if tensor.is_floating_point()} == {torch.float32}


def test_half_precision_activations_are_counted_in_float32() -> None:
    x = torch.cat([torch.zeros(20000), torch.linspace(-1, 1, 2000), torch.tensor([8.0])]).bfloat16()
    seen = []
    for dtype in (torch.bfloat16, torch.float32):
        model = nn.Identity()
        attach_activations(model, Activations(bits=4, kinds=(nn.Identity,)), p=1.0)
        seen.append((model(x.to(dtype)).bfloat16(), the_noise(model).quantize.scale))
    assert all(torch.equal(half, full) for half, full in zip(*seen, strict=True))


def test_autocast() -> None:
    model = a_net()
    attach_activations(model, MINMAX, p=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(torch.ones(4, 8))
    output.sum().backward()
    assert output.dtype == torch.bfloat16 and gradient(model[0]).dtype == torch.float32


def test_training_resumes_with_the_same_numbers() -> None:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list[Tensor]) -> None:
        for batch in data:
            optimizer.zero_grad()
            model(batch).square().sum().backward()
            optimizer.step()

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = a_net()
        attach_activations(model, Activations(every=2), p=0.5)
        return model, torch.optim.AdamW(model.parameters())

    data = batches(6, 4, 8)
    model, optimizer = make()
    train(model, optimizer, data[:3])
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()), file)
    train(model, optimizer, data[3:])

    resumed, other = make()
    weights, state, random = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed.load_state_dict(weights)
    other.load_state_dict(state)
    torch.set_rng_state(random)
    train(resumed, other, data[3:])
    assert all(torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_model_compiles_and_gives_the_same_numbers() -> None:
    model = a_net()
    attach_activations(model, MINMAX, p=0.5)
    twin = copy.deepcopy(model)
    compiled = torch.compile(twin, backend="eager")
    for batch in batches(3, 4, 8):
        torch.manual_seed(5)
        expected = model(batch)
        torch.manual_seed(5)
        assert torch.equal(compiled(batch), expected)


@pytest.mark.parametrize("strict", [False, True])
def test_eval_mode_exports_without_noise(strict: bool) -> None:
    model = a_net().eval()
    attach_activations(model, MINMAX, p=1.0)
    exported = torch.export.export(model, (torch.ones(4, 8),), strict=strict)
    assert {str(node.target) for node in exported.graph.nodes if node.op == "call_function"} == {"aten.linear.default", "aten.relu.default"}


# where it goes


def test_attach_names_what_carries_weights_or_what_it_is_told() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.ReLU(), nn.Conv1d(1, 1, 1))
    assert attach_activations(copy.deepcopy(model)) == ["0", "1", "3"]
    assert attach_activations(copy.deepcopy(model), Activations(names=("1", "[23]"), kinds=(nn.ReLU, nn.Linear))) == ["1", "2"]
    assert attach_activations(copy.deepcopy(model[1])) == [""]


def test_remove_leaves_the_plain_model_and_only_its_own_hooks_go() -> None:
    model = a_net()
    names, seen = list(model.state_dict()), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    attach_activations(model, MINMAX, p=1.0)
    assert len(model.state_dict()) > len(names)
    twin = copy.deepcopy(model)
    remove_activations(model)
    assert list(model.state_dict()) == names and "activation_noise" not in str(model)
    model(torch.ones(4, 8))
    twin(torch.ones(4, 8))
    assert len(seen) == 2 and float(the_noise(twin[0]).quantize.scale) != 1.0
    remove_activations(twin)
    assert list(twin.state_dict()) == names
    remove_activations(model)


@pytest.mark.parametrize("make", [lambda: nn.MultiheadAttention(8, 2), lambda: nn.LSTM(8, 8)], ids=["attention", "LSTM"])
def test_of_a_tuple_the_first_is_rounded(make: object) -> None:
    model = make()  # type: ignore[operator]
    assert attach_activations(model, Activations(bits=2), p=1.0) == [""]
    inputs = (torch.randn(5, 3, 8),) * (3 if isinstance(model, nn.MultiheadAttention) else 1)
    first, second = model(*inputs)
    assert first.unique().numel() <= 4
    assert (second if isinstance(second, Tensor) else second[0]).unique().numel() > 4


def test_weight_noise_and_activation_noise_go_together() -> None:
    model = a_net()
    names = list(model.state_dict())
    attach_activations(model, MINMAX, p=1.0)
    noise.attach(model, Recipe((Rule(Int8()),)), p=1.0)
    model(torch.ones(4, 8)).sum().backward()
    remove_activations(model)
    noise.remove(model)
    assert list(model.state_dict()) == names and type(model[0]) is nn.Linear


# errors


def test_attaching_twice_says_what_to_do_and_changes_nothing() -> None:
    model = a_net()
    attach_activations(model, Activations(names=("2",)), p=0.3)
    with pytest.raises(InputError, match=r"'2' already has activation noise; call remove_activations"):
        attach_activations(model)
    assert the_noise(model[2]).p == 0.3 and not hasattr(model[0], "activation_noise")


def test_a_list_of_modules_is_refused() -> None:
    with pytest.raises(InputError, match="'' is a Sequential, which would take the noise for one of its layers"):
        attach_activations(a_net(), Activations(kinds=(nn.Module,)))


def test_nothing_to_watch_is_refused() -> None:
    with pytest.raises(InputError, match=r"Sequential has no module at head\.\* among Linear; give Activations"):
        attach_activations(a_net(), Activations(names=("head.*",), kinds=(nn.Linear,)))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="'percentile' is none of histogram, minmax, moving_average"):
        Activations("percentile")  # type: ignore[arg-type]
    for bits in (1, 9):
        with pytest.raises(InputError, match="expected 2 to 8"):
            Activations(bits=bits)
    with pytest.raises(InputError, match="every 0 passes; expected 1 or more"):
        Activations(every=0)
    with pytest.raises(InputError, match=r"is not in 0\.\.1"):
        attach_activations(a_net(), p=1.5)
