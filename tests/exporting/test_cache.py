"""A cache as an input and an output: what one step hands to the next is neither rounded nor moved, however often it is fed back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import compress
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Batch
from qn_deploy.recipe import Recipe, Rule, Table

SLOTS, WIDTH = 6, 32
Update = Callable[[Tensor, Tensor, Tensor], Tensor]


def where(cache: Tensor, position: Tensor, new: Tensor) -> Tensor:
    return torch.where((torch.arange(SLOTS) == position[:, None])[:, :, None], new, cache)


def scatter(cache: Tensor, position: Tensor, new: Tensor) -> Tensor:
    return cache.scatter(1, position[:, None, None].expand(-1, 1, WIDTH), new)


class Step(nn.Module):
    def __init__(self, update: Update) -> None:
        super().__init__()
        self.inner, self.out, self.update = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), update

    def forward(self, x: Tensor, position: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 1, WIDTH], int64 [B], [B, SLOTS, WIDTH] -> [B, WIDTH], [B, SLOTS, WIDTH]."""
        cache = self.update(cache, position, self.inner(x))
        seen = (torch.arange(SLOTS) <= position[:, None])[:, :, None]
        return self.out((cache * seen).sum(1)), cache


def drawn(position: list[int]) -> Batch:
    return torch.randn(len(position), 1, WIDTH), torch.tensor(position), torch.randn(len(position), SLOTS, WIDTH)


@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC])
@pytest.mark.parametrize("update", [where, scatter])
@pytest.mark.parametrize("name", sorted(find_exporters()))
def test_what_lies_in_a_cache_stays_as_it_was_written(name: str, update: Update, activations: Activations) -> None:
    torch.manual_seed(0)
    batches = [drawn([0, 2, 3, 5]) for _ in range(4)]
    program = compress(capture(Step(update), batches[0]), Recipe((Rule(Table(4, 16)),)), batches)
    exporter = find_exporters()[name]
    data = write_file(exporter, program, activations).data
    x, position, cache = drawn([4, 1])
    cache = 100 * cache  # far outside what was calibrated
    ((_, fed),) = exporter.run(data, ((x, position, cache),))
    rest = torch.arange(SLOTS) != position[:, None]
    assert torch.equal(fed[rest], cache[rest])  # to the bit
    written = fed[~rest]
    assert not torch.equal(written, cache[~rest])
    ((_, again),) = exporter.run(data, ((x, (position + 1) % SLOTS, fed),))
    assert torch.equal(again[~rest], written)
