from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.graph.blocks import Block, blocks
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture


class Residual(nn.Module):
    """Two layers around which the input goes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(6, 8), nn.Linear(8, 6), nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.norm(x + self.down(torch.relu(self.up(x))))
        return added


class Words(nn.Module):
    """A table of words that the head reads, too, a mask that each block reads, two residual blocks, and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 6)
        self.body = nn.ModuleList([Residual(), Residual()])
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        mask = (tokens > 2)[..., None].float()
        x = first = self.words(tokens) * mask
        for block in self.body:
            x = block(x) * mask
            first = x if first is None else first
        return self.head(x), x.mean(1)


X = torch.randint(20, (4, 5), generator=torch.Generator().manual_seed(0))
NAMES = {"words.weight", "body.0.up.weight", "body.0.down.weight", "body.1.up.weight", "body.1.down.weight"}


def cut(net: nn.Module, x: Tensor, names: set[str], least: int) -> list[Block]:
    return blocks(unlifted(capture(net, (x,)).exported), names, least)


def run(found: list[Block], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """All values between blocks, by name."""
    values = dict(given)
    for block in found:
        values |= dict(zip(block.outputs, block.module(*(values[name] for name in block.inputs)), strict=True))
    return values


@pytest.mark.parametrize("least", [1, 2, 3, 9])
def test_the_blocks_one_after_the_other_are_the_graph(least: int) -> None:
    torch.manual_seed(0)
    whole = unlifted(capture(Words(), (X,)).exported)
    found = blocks(whole, NAMES, least)
    values = run(found, {"tokens": X})
    assert all(torch.equal(values[name], out) for name, out in zip(found[-1].outputs, whole(X), strict=True))


def test_cuts_fall_between_residual_blocks_behind_their_norms() -> None:
    found = cut(Words(), X, NAMES, 1)
    inside = [sorted(block.own & NAMES) for block in found]
    assert inside == [[], ["body.0.down.weight", "body.0.up.weight"], ["body.1.down.weight", "body.1.up.weight"]]
    assert "body.0.norm.weight" in found[1].own
    assert all(len([name for name in block.outputs if name.startswith(("mul", "layer_norm"))]) <= 1 for block in found)


def test_what_several_blocks_read_is_nobodys_own() -> None:
    found = cut(Words(), X, NAMES, 1)
    assert all("words.weight" not in block.own for block in found)
    assert sum("words.weight" in dict(block.module.named_parameters()) for block in found) == 2


def test_a_chain_is_cut_into_as_many_layers_as_asked_for() -> None:
    net = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(4, 4), nn.ReLU())))
    names = {f"{index}.weight" for index in range(0, 10, 2)}
    x = torch.ones(2, 4)
    assert [len(block.own & names) for block in cut(net, x, names, 1)] == [1] * 5
    assert [len(block.own & names) for block in cut(net, x, names, 2)] == [2, 2, 1]
    assert [len(block.own & names) for block in cut(net, x, names, 9)] == [5]
    assert cut(net, x, names, 1)[0].outputs == ("relu",)


def test_only_the_layers_asked_for_count() -> None:
    net = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(4, 4), nn.ReLU())))
    found = cut(net, torch.ones(2, 4), {"2.weight", "6.weight"}, 1)
    assert [sorted(name for name in block.own if "weight" in name) for block in found] == [
        ["0.weight", "2.weight", "4.weight"],
        ["6.weight"],
    ]
