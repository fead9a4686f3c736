from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.graph.lifted import unlifted
from qn_deploy.graph.signs import move_signs
from qn_deploy.program.capture import capture

SIGNS = torch.tensor([1.0, -1.0, -1.0, 1.0])


def named(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(layer, nn.ReLU()).eval()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)),
        (nn.Conv2d(4, 4, 3, groups=2, bias=False), torch.randn(2, 4, 5, 5)),
        (nn.Conv1d(3, 4, 2), torch.randn(2, 3, 5)),
        (nn.Linear(3, 4), torch.randn(2, 7, 3)),
        (nn.Linear(3, 4, bias=False), torch.randn(2, 3)),
    ],
    ids=["conv2d", "groups, no bias", "conv1d", "linear of sequences", "linear"],
)
def test_rows_change_their_sign_and_the_outputs_do_not(layer: nn.Module, x: Tensor) -> None:
    program = capture(named(layer), (x,))
    before = program.exported.state_dict["0.weight"].clone()
    graph_module = unlifted(program.exported)
    move_signs(graph_module, {"0.weight": SIGNS})
    assert torch.equal(graph_module(x)[0], program.golden.outputs[0])
    assert torch.equal(graph_module.get_parameter("0.weight"), before * SIGNS.reshape(-1, *[1] * (before.ndim - 1)))
    assert torch.equal(program.exported.state_dict["0.weight"], before), "the program that it was made of has changed"


class Twice(nn.Module):
    """One weight read by two layers, and its bias by another thing as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).relu()) + self.layer.bias


def test_every_reader_of_a_weight_gets_the_signs_and_the_bias_stays_for_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    program = capture(Twice(), (x,))
    graph_module = unlifted(program.exported)
    move_signs(graph_module, {"layer.weight": SIGNS})
    torch.testing.assert_close(graph_module(x)[0], program.golden.outputs[0], rtol=0, atol=1e-6)
    assert [node.target for node in graph_module.graph.nodes].count(torch.ops.aten.mul.Tensor) == 2
