from __future__ import annotations

import torch
from torch import Tensor, nn

from qn_deploy.graph.dynamic_shapes import doubled, export_like
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.capture import capture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x.flatten(1)) * scale


X, SCALE = torch.randn(1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor(2.0)


def test_one_sample_is_doubled_where_the_batch_is_dynamic() -> None:
    x, scale = doubled(capture(Net(), (X, SCALE)).exported, (X, SCALE))
    assert torch.equal(x, torch.cat([X, X])) and scale is SCALE
    x, _ = doubled(capture(Net(), (X, SCALE), dynamic_shapes=()).exported, (X, SCALE))
    assert x is X


def test_a_graph_is_exported_again_with_its_dynamic_batch() -> None:
    program = capture(Net(), (X, SCALE))
    again = export_like(unlifted(program.exported), program.exported, program.golden.inputs)
    many = torch.cat([X] * 5)
    assert torch.equal(again.module()(many, SCALE)[0], program.exported.module()(many, SCALE)[0])
