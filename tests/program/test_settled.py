from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.errors import ExportError
from qn_deploy.graph.dynamic_shapes import dynamic_shapes
from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.settled import settled

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
BATCH = torch.export.Dim("batch", min=1, max=64)


class Busy(nn.Module):
    """In place, dropout, regions, a view, an assertion."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(8, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        torch._check(x.shape[1] == 8)
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            y = self.dropout(self.layer(x)).relu_()
        y = y.add_(1).contiguous().view(-1, 2, 2)
        return y, y.transpose(1, 2).reshape(x.shape[0], 4)


def test_what_the_rest_may_rely_on() -> None:
    model = Busy().eval()
    exported = torch.export.export(model, (X,), dynamic_shapes=({0: BATCH},), strict=False)
    found = settled(exported, (X,))
    called = [str(node.target) for node in found.graph.nodes if node.op == "call_function"]
    assert not any("_." in name or "dropout" in name or "higher_order" in name or "assert" in name or "view" in name for name in called)
    assert all(node.op in ("placeholder", "call_function", "output") for node in found.graph.nodes)
    for one, other in zip(unlifted(found)(X), model(X), strict=True):
        assert torch.equal(one, other)
    assert found.graph_signature.user_inputs == ("x",)


def test_dynamic_dimensions_stay_with_their_bounds() -> None:
    exported = torch.export.export(Busy().eval(), (X,), dynamic_shapes=({0: BATCH},), strict=False)
    [shape] = dynamic_shapes(settled(exported, (X,)))
    assert (shape[0].min, shape[0].max) == (1, 64) and list(shape) == [0]
    fixed = torch.export.export(Busy().eval(), (X,), strict=False)
    assert dynamic_shapes(settled(fixed, (X,))) is None


def test_outputs_are_picked_and_constants_renamed() -> None:
    model = Busy().eval()
    exported = torch.export.export(model, (X,), strict=False)
    found = settled(exported, (X,), kept=(1,), rename=lambda name: f"net.{name}")
    [output] = unlifted(found)(X)
    assert torch.equal(output, model(X)[1]) and set(found.state_dict) == {"net.layer.weight", "net.layer.bias"}
    assert set(exported.state_dict) == {"layer.weight", "layer.bias"}


class Scaled(nn.Module):
    def forward(self, x: Tensor, by: int) -> Tensor:
        return x * by


def test_python_constants_are_gone_and_numbers_that_change_are_refused() -> None:
    found = settled(torch.export.export(Scaled(), (X, 3), strict=False), (X,))
    assert found.graph_signature.user_inputs == ("x",) and torch.equal(unlifted(found)(X)[0], X * 3)
    any_number = torch.export.export(Scaled(), (X, 3), dynamic_shapes=(None, torch.export.Dim.DYNAMIC), strict=False)
    with pytest.raises(ExportError, match="the input by is no tensor, and the graph computes with it"):
        settled(any_number, (X,))
