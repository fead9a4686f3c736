"""Operators that get another form give the same values, in torch and on both runtimes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.program import Program
from qn_deploy.verification.numerics import compare
from qn_deploy.weights.compressed import PQWeight

aten = torch.ops.aten
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]


def targets(program: Program) -> list[object]:
    return [node.target for node in lower(program, Form(Activations.NONE)).exported.graph.nodes if node.op == "call_function"]


def check_runtimes(program: Program) -> None:
    """Both runtimes give what the model gave."""
    for exporter in find_exporters().values():
        (found,) = exporter.run(write_file(exporter, program, Activations.NONE).data, (program.golden.inputs,))
        for one, other in zip(found, program.golden.outputs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


class Attention(nn.Module):
    def __init__(self, bias: Tensor | None = None) -> None:
        super().__init__()
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(x, 2 * x, x + 1, attn_mask=self.bias if mask is None else mask)


def masks() -> dict[str, Tensor]:
    """A mask of each kind for 3 batches of 6 keys; the second hides two of them, the third everything."""
    seen = torch.ones(3, 1, 1, 6, dtype=torch.bool)
    seen[1, ..., 4:], seen[2] = False, False
    hidden = torch.zeros(3, 1, 1, 6).masked_fill(~seen, -torch.inf)
    return {"bool": seen, "inf": hidden, "min": hidden.clamp(min=torch.finfo(torch.float32).min), "soft": torch.randn(3, 1, 6, 6)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bool", "inf", "min", "soft"])
def test_masked_attention_is_finite_and_what_torch_gives(make_program: MakeProgram, kind: str) -> None:
    torch.manual_seed(0)
    program = make_program(Attention(), (torch.randn(3, 2, 6, 8), masks()[kind]), {}, ())
    assert aten.scaled_dot_product_attention.default not in targets(program)
    check_runtimes(program)


@pytest.mark.slow
def test_a_learned_bias_is_only_added(make_program: MakeProgram) -> None:
    torch.manual_seed(0)
    program = make_program(Attention(torch.randn(2, 6, 6)[None]), (torch.randn(3, 2, 6, 8),), {})
    assert aten.clamp.default not in targets(program)
    check_runtimes(program)


class Bags(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 8, mode=mode)

    def forward(self, ids: Tensor) -> Tensor:
        return self.bag(ids)  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_one_length_are_looked_up_in_their_table(make_program: MakeProgram, random_table: RandomTable, mode: str) -> None:
    table, ids = random_table((20, 8), block=4, per_row=False), torch.tensor([[0, 19, 3], [7, 7, 1]])
    program = make_program(Bags(mode), (ids,), {"bag.weight": table})
    assert aten.embedding_bag.padding_idx not in targets(program)
    assert not lower(program, Form(Activations.NONE)).weights  # nothing holds the whole weight
    check_runtimes(program)


class Uneven(Bags):
    def forward(self, ids: Tensor) -> Tensor:
        return self.bag(ids, torch.tensor([0, 4]))  # type: ignore[no-any-return]


def test_other_bags_have_a_float_constant(make_program: MakeProgram, random_table: RandomTable) -> None:
    table, ids = random_table((20, 8), block=4, per_row=False), torch.tensor([0, 19, 3, 7, 7, 1])
    program = make_program(Uneven("sum"), (ids,), {"bag.weight": table})
    lowered = lower(program, Form(Activations.NONE, baked=True))
    assert set(lowered.weights) == {"bag.weight"}
    torch.testing.assert_close(lowered.simulate((ids,)), program.golden.outputs)


class Shapes(nn.Module):
    """Pads that take away, clamps, and a mean over height and width."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (
            F.pad(x, (-1, 2, 0, -2)),
            F.pad(x, (-1, -1)),
            torch.clamp(x, -0.5, 1.0),
            torch.clamp(x, min=0),
            x.clamp(max=0.25),
            x.mean((-1, 2)),
            x.mean((2, 3), keepdim=True),
        )


def test_the_other_forms_give_the_same_values(make_program: MakeProgram) -> None:
    torch.manual_seed(0)
    program = make_program(Shapes(), (torch.randn(2, 3, 5, 6),), {})
    found = targets(program)
    assert [found.count(each) for each in (aten.hardtanh.default, aten.relu.default, aten.adaptive_avg_pool2d.default)] == [1, 1, 2]
    assert not {aten.mean.dim} & set(found)
    for one, other in zip(lower(program, Form(Activations.NONE)).simulate(program.golden.inputs), program.golden.outputs, strict=True):
        assert compare(one, other).sqnr_db > 100
