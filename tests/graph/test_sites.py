from __future__ import annotations

import torch
from torch import Tensor, nn

from qn_deploy.graph.lifted import constants, with_constants
from qn_deploy.graph.sites import operator_name, weights
from qn_deploy.program.capture import capture


class Language(nn.Module):
    """An embedding whose weight the output layer shares; an LSTM; a table of positions that is only added."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 20)
        self.out.weight = self.embed.weight
        self.position = nn.Parameter(torch.randn(5, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.out(self.lstm(self.embed(tokens) + self.position)[0])
        return out


TOKENS = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(0))


def test_weights_are_in_the_order_of_their_first_readers() -> None:
    found = weights(capture(Language(), (TOKENS,)).exported)
    assert [[operator_name(reader) for reader in weight.readers] for weight in found] == [["embedding", "linear"], ["lstm"], ["lstm"]]
    assert [weight.name for weight in found[1:]] == ["lstm.weight_ih_l0", "lstm.weight_hh_l0"]
    assert all(weight.others == () for weight in found)
    assert found[0].value.shape == (20, 8) and found[0].kernel is None


def test_a_convolution_has_a_kernel() -> None:
    model = nn.Sequential(nn.Conv1d(3, 4, 5), nn.ConvTranspose1d(4, 2, 3))
    found = weights(capture(model, (torch.randn(2, 3, 9),)).exported)
    assert [(weight.name, weight.kernel) for weight in found] == [("0.weight", (5,)), ("1.weight", (3,))]


def test_other_readers_are_known() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.layer(x) + self.layer.weight
            return out

    [weight] = weights(capture(Doubled(), (torch.randn(4, 4),), dynamic_shapes=()).exported)
    assert [operator_name(node) for node in weight.others] == ["add"]


def test_other_values_in_the_same_graph() -> None:
    exported = capture(nn.Linear(3, 2), (torch.ones(2, 3),)).exported
    before = exported.state_dict["weight"].clone()
    changed = with_constants(exported, {"weight": torch.full((2, 3), 7.0)})
    assert [constant.name for constant in constants(changed).values()] == ["weight", "bias"]
    with torch.no_grad():
        assert torch.equal(changed.module(check_guards=False)(torch.ones(2, 3))[0], 21 + exported.state_dict["bias"].expand(2, 2))
    assert torch.equal(exported.state_dict["weight"], before) and exported.state_dict["bias"] is changed.state_dict["bias"]
    assert [node.name for node in changed.graph.nodes] == [node.name for node in exported.graph.nodes]
