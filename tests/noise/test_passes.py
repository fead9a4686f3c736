from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from qn_deploy import noise
from qn_deploy.errors import InputError
from qn_deploy.recipe import Int8, Recipe, Rule, Table

torch.set_num_threads(1)

TABLES = Recipe((Rule(Table(4, 2)),))

LAYERS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "Linear": (nn.Linear(16, 8), (torch.randn(4, 16),)),
    "Conv1d": (nn.Conv1d(8, 8, 3), (torch.randn(2, 8, 6),)),
    "Conv2d grouped": (nn.Conv2d(8, 8, 2, groups=2), (torch.randn(2, 8, 6, 6),)),
    "ConvTranspose1d": (nn.ConvTranspose1d(8, 8, 2), (torch.randn(2, 8, 6),)),
    "ConvTranspose2d": (nn.ConvTranspose2d(8, 8, 2), (torch.randn(2, 8, 6, 6),)),
    "MultiheadAttention": (nn.MultiheadAttention(16, 2), (torch.randn(5, 2, 16),) * 3),
    "TransformerEncoderLayer": (nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0), (torch.randn(5, 2, 16),)),
    "LSTM": (nn.LSTM(16, 8, num_layers=2), (torch.randn(5, 2, 16),)),
    "GRU": (nn.GRU(16, 8, bidirectional=True), (torch.randn(5, 2, 16),)),
}


def run(model: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
    out = model(*inputs)
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first


def gradients(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    torch.autograd.backward(run(model, inputs).square().sum())
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", LAYERS)
def test_noise_shows_in_training_and_never_in_eval(name: str) -> None:
    layer, inputs = copy.deepcopy(LAYERS[name])
    clean = run(layer.eval(), inputs)
    noise.attach(layer, TABLES, p=0.3)
    assert torch.equal(run(layer, inputs), clean)
    with torch.no_grad():
        torch.testing.assert_close(run(layer, inputs), clean)  # the fused kernels, too
    layer.train()
    torch.manual_seed(0)
    first, second = run(layer, inputs), run(layer, inputs)
    assert not torch.equal(first, clean) and not torch.equal(second, first)
    torch.manual_seed(0)
    assert torch.equal(run(copy.deepcopy(layer), inputs), first)
    assert torch.equal(run(layer.eval(), inputs), clean)
    noise.remove(layer)
    torch.testing.assert_close(run(layer, inputs), clean)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_a_copy_that_is_kept(name: str) -> None:
    layer, inputs = copy.deepcopy(LAYERS[name])
    noise.attach(layer, TABLES, p=0.3)
    found = gradients(layer, inputs)
    with saved_tensors_hooks(lambda saved: saved, lambda saved: saved):  # somebody else's hooks: ours stand back
        kept = gradients(layer, inputs)
    assert len(found) == len(kept) == len(list(layer.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(found, kept, strict=True))


def test_one_forward_pass_sees_one_draw_and_the_next_another() -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight) - nn.functional.linear(x, self.weight)

    layer = Twice(64, 64)
    noise.attach(layer, TABLES, p=0.5)
    x = torch.randn(4, 64)
    torch.manual_seed(0)
    assert not layer(x).any()
    once = torch.get_rng_state()
    layer(x)
    assert not torch.equal(torch.get_rng_state(), once)


@pytest.mark.parametrize("recipe", [TABLES, Recipe((Rule(Int8()),))], ids=["tables", "int8"])
def test_no_noised_copy_lives_from_forward_to_backward(recipe: Recipe) -> None:
    layer = nn.Linear(64, 64)
    noise.attach(layer, recipe, p=0.1)
    alive: list[weakref.ref[Any]] = []
    quant_noise = layer.get_submodule("parametrizations.weight.0")
    quant_noise.register_forward_hook(lambda module, args, noised: alive.append(weakref.ref(noised.untyped_storage())))
    loss = layer(torch.randn(4, 64, requires_grad=True)).sum()
    gc.collect()
    assert len(alive) == 1 and alive[0]() is None
    loss.backward()


def test_checkpointing_repeats_the_draw() -> None:
    layer, x = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)), torch.randn(4, 16, requires_grad=True)
    noise.attach(layer, TABLES, p=0.3)
    expected = gradients(layer, (x,))
    torch.manual_seed(3)
    layer.zero_grad()
    torch.autograd.backward(checkpoint(layer, x, use_reentrant=False).square().sum())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(layer.parameters(), expected, strict=True) if p.grad is not None)


def test_hooks_around_the_model_still_get_all_that_is_saved() -> None:
    layer, offloaded = nn.Linear(16, 16), []
    noise.attach(layer, TABLES, p=0.3)
    with saved_tensors_hooks(lambda saved: offloaded.append(saved.shape) or saved, lambda saved: saved):
        layer(torch.ones(2, 16, requires_grad=True))
    assert sorted(offloaded) == [(2, 16), (16, 16)]


def test_a_failed_forward_pass_leaves_nothing_behind() -> None:
    layer = nn.Linear(16, 16)
    noise.attach(layer, TABLES, p=0.5)
    with pytest.raises(RuntimeError):
        layer(torch.randn(2, 5))
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert not torch.equal(layer.weight, layer.weight)  # each read outside of a pass draws anew


def test_a_weight_that_changes_before_backward_is_refused() -> None:
    layer = nn.Linear(16, 16)
    noise.attach(layer, TABLES, p=0.5)
    loss = layer(torch.randn(2, 16, requires_grad=True)).sum()
    with torch.no_grad():
        layer.get_parameter("parametrizations.weight.original").add_(1)
    with pytest.raises(InputError, match=r"changed between forward and backward; call optimizer\.step\(\) after"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("options", [noise.Options(), noise.Options("exact", over=Int8())], ids=["proxy", "exact and int8"])
def test_autocast_trains_the_float32_weight(options: noise.Options, dtype: torch.dtype) -> None:
    layer = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    noise.attach(layer, TABLES, p=0.3, options=options)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(torch.randn(4, 64))
    out.float().sum().backward()
    assert out.dtype == dtype
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in layer.parameters())


@pytest.mark.parametrize(
    ("recipe", "options", "whole"),
    [
        (TABLES, noise.Options(), True),
        (Recipe((Rule(Int8()),)), noise.Options(), True),
        (TABLES, noise.Options("exact"), False),
    ],
    ids=["proxy", "int8", "exact"],
)
def test_compiled_training_sees_noise_and_compiled_eval_none(recipe: Recipe, options: noise.Options, whole: bool) -> None:
    torch.compiler.reset()
    layer, x = nn.Linear(64, 64), torch.randn(4, 64)
    noise.attach(layer, recipe, p=1.0, options=options)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=whole)
    all_noise = gradients(layer, (x,))
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(gradients(compiled, (x,)), all_noise, strict=True))
    noise.set_rate(layer, 0.5)
    assert not torch.equal(compiled(x), compiled(x))
    layer.eval()
    assert torch.equal(compiled(x), layer(x))
