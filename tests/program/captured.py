"""A model that returns what it is told to, and what is asked of every captured program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qn_deploy.graph.lifted import unlifted
from qn_deploy.program.program import Program

INPUT = (torch.linspace(-1, 1, 32).reshape(4, 8),)


class Returns(nn.Module):
    """A linear layer whose output leaves the model in any form."""

    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)
        self.form = form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.layer(x))


def agrees(program: Program) -> None:
    """The graph gives the golden outputs, which are the float model's."""
    for one, other in zip(unlifted(program.exported)(*program.golden.inputs), program.golden.outputs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def sizes(program: Program) -> list[list[int | None]]:
    """Of each input; None where any is taken."""
    values = [node.meta["val"] for node in program.exported.graph.nodes if node.name in program.inputs]
    return [[size if isinstance(size, int) else None for size in value.shape] for value in values]
