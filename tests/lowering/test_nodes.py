"""A node that is inserted knows its shape, and leaves dynamic sizes dynamic."""

from __future__ import annotations

import torch
from torch import nn

from qn_deploy.lowering.nodes import called
from qn_deploy.program.capture import capture


def test_a_dynamic_size_stays_dynamic_behind_an_operator_written_in_cpp() -> None:
    exported = capture(nn.ReLU(), (torch.randn(4, 8, 10),)).exported
    graph_module = exported.module(check_guards=False)
    [relu] = graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
    with graph_module.graph.inserting_after(relu):
        padded = called(graph_module, torch.ops.aten.constant_pad_nd.default, relu, [0, 0, 1, 1])
    batch, *rest = padded.meta["val"].shape
    assert not isinstance(batch, int) and batch.node.expr.is_Symbol
    assert rest == [10, 10]
