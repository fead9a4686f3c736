from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression.calibrate import calibrate
from qn_deploy.errors import InputError
from qn_deploy.program.capture import capture


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(self.layer(x)).reshape(x.shape[0], 2, 2) + 1
        return out


X = torch.rand(64, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_ranges_are_by_node_and_cover_all_batches() -> None:
    torch.manual_seed(0)
    program = capture(Net(), (X[:2],))
    found = calibrate(program, [(batch,) for batch in X.split(32)])
    assert list(found.ranges) == ["x", "linear", "relu", "add"]  # a reshape has the range of its input
    with torch.no_grad():
        linear = program.exported.graph_module and nn.functional.linear(X, *program.exported.state_dict.values())
    for name, value in {"x": X, "linear": linear, "relu": linear.relu(), "add": linear.relu() + 1}.items():
        low, high = found.ranges[name]
        assert low == pytest.approx(min(float(value.min()), 0.0), rel=0.2) and high == pytest.approx(float(value.max()), rel=0.2)
    assert found.exported is program.exported and program.ranges == {}
    assert found.provenance[-1]["stage"] == "calibrate"


def test_batches_by_name_and_of_any_size_are_the_same() -> None:
    program = capture(Net(), (X[:2],))
    first = calibrate(program, [(X[:1],), (X[1:],)]).ranges
    assert calibrate(program, [{"x": X[:1]}, {"x": X[1:]}]).ranges == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there are no batches"),
        ([X], "a batch is a Tensor; give tuples of input tensors"),
        ([(X, X)], "batch 0 holds 2 inputs; the model takes 1: x"),
        ([(X,), {"y": X}], "batch 1 has inputs named y; the model takes x"),
        ([(X[:, :3],)], r"batch 0, input x is torch.float32 \[64, 3\]; expected torch.float32 \[any, 4\]"),
        ([(X.double(),)], r"batch 0, input x is torch.float64 .* expected torch.float32"),
        ([(X / 0,)], "batch 0, input x holds NaN or infinity"),
        ([([1.0],)], "batch 0, input x is a list; expected a tensor"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batches: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        calibrate(capture(Net(), (X[:2],)), batches)
