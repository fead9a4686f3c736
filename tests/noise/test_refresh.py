from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qn_deploy import noise
from qn_deploy.errors import CompressionError, InputError
from qn_deploy.recipe import Int4, Recipe, Rule
from tests.noise.models import INT8, TABLES, Net, a_batch, a_net, bits, noises, original, seen


def test_refresh_makes_the_codebooks_of_the_weights_as_they_are_now() -> None:
    model = nn.Linear(16, 16)
    noise.attach(model, TABLES, p=1.0, options=noise.Options("exact"))
    first = seen(model).detach().clone()
    with torch.no_grad():
        original(model).copy_(torch.randn(16, 16, generator=torch.Generator().manual_seed(5)))
    stale = float((seen(model) - original(model)).square().mean().detach())
    noise.refresh(model)
    assert float((seen(model) - original(model)).square().mean().detach()) < stale
    assert not torch.equal(seen(model), first)


def test_tied_weights_learn_once_and_alike() -> None:
    model = a_net()
    noise.attach(model, TABLES, p=1.0, options=noise.Options("exact"))
    assert noises(model.token)[0] is noises(model.head)[0]
    assert torch.equal(model.token.weight, model.head.weight)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        (TABLES, noise.Options()),
        (TABLES, noise.Options("exact", "clusters", over=Int4())),
        (INT8, noise.Options(grid="histogram")),
        (Recipe((Rule(Int4()),)), noise.Options()),
    ],
    ids=["proxy", "clusters and int4", "histogram", "int4"],
)
def test_a_checkpoint_goes_on_with_the_same_numbers(recipe: Recipe, options: noise.Options, tmp_path: Path) -> None:
    def start() -> tuple[Net, torch.optim.Optimizer]:
        model = a_net()
        noise.attach(model, recipe, p=0.3, options=options)
        return model, torch.optim.Adam(model.parameters(), lr=0.05)

    def train(model: Net, optimizer: torch.optim.Optimizer, refresh: bool) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(*a_batch()).square().sum().backward()
            optimizer.step()
        if refresh:
            noise.refresh(model)

    model, optimizer = start()
    train(model, optimizer, refresh=True)
    train(model, optimizer, refresh=False)  # the weights move away from what the noises know
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": torch.get_rng_state()}, tmp_path / "check.pt")
    train(model, optimizer, refresh=True)
    train(model, optimizer, refresh=False)

    resumed, optimizer = start()
    state = torch.load(tmp_path / "check.pt")
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    train(resumed, optimizer, refresh=True)
    train(resumed, optimizer, refresh=False)
    assert bits(resumed) == bits(model)


def test_refresh_without_noise_is_refused() -> None:
    with pytest.raises(InputError, match=r"no weight noise to refresh; call qn_deploy\.noise\.attach"):
        noise.refresh(nn.Linear(8, 4))


def test_a_weight_that_is_not_finite_is_named_and_nothing_attached() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        seen(model[1])[0, 0] = torch.nan
    with pytest.raises(CompressionError, match=r"1\.weight: .*NaN"):
        noise.attach(model, TABLES, options=noise.Options("exact"))
    assert type(model[0]) is nn.Linear
