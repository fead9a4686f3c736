"""Large parameters that are no layer's weight are looked up, so that they are compressed; the graph computes the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qn_deploy import capture, compress, export, verify
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table

aten = torch.ops.aten


class Positions(nn.Module):
    """A table of positions, as vision transformers hold it, whose first rows are added to what a layer makes."""

    def __init__(self, rows: int = 64, width: int = 128) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, rows, width))
        self.enter, self.norm, self.leave = nn.Linear(16, width), nn.LayerNorm(width), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.leave(self.norm(self.enter(x) + self.table[:, : x.shape[1]]))
        return scores


class Sinusoids(nn.Module):
    """What is computed, and so learned by nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.sin(torch.outer(torch.arange(64.0), torch.arange(1.0, 129.0))))
        self.enter, self.leave = nn.Linear(16, 128), nn.Linear(128, 8)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.leave(self.enter(x) + self.table)
        return scores


class Normed(nn.Module):
    """A norm over a whole image has large parameters too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm((4, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x) + 1
        return result


def lookups(program: Program) -> int:
    return sum(node.target is aten.embedding.default for node in program.exported.graph.nodes)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (Positions, (4, 64, 16), 1),
        (lambda: Positions(rows=8), (4, 8, 16), 0),  # small
        (lambda: Positions(rows=1024, width=4), (4, 64, 16), 0),  # rows that no block divides
        (Sinusoids, (4, 64, 16), 0),
        (Normed, (4, 4, 32, 32), 0),
    ],
)
def test_only_large_learned_tables_are_looked_up(model: Callable[[], nn.Module], shape: tuple[int, ...], expected: int) -> None:
    program = capture(model().eval(), (torch.randn(shape),))
    assert lookups(program) == expected
    (found,) = program.exported.module()(*program.golden.inputs)
    assert torch.allclose(found, program.golden.outputs[0], atol=1e-6)


@pytest.mark.slow
def test_a_table_of_positions_is_compressed_and_stays_so_in_both_files(tmp_path: Path) -> None:
    program = capture(Positions().eval(), (torch.randn(4, 64, 16),))
    small = compress(program, Recipe((Rule(Table(4, 16), module="Embedding"), Rule(Int8()))), [program.golden.inputs])
    assert not small.left
    build = export(small, tmp_path / "build")
    assert build.manifest.weights["table"].kind == "table"
    assert all(entry.bytes < 24_000 for entry in build.manifest.files.values())  # as floats the table alone is 32 kB
    assert verify(tmp_path / "build").passed
