"""Every size in the declared range runs, and what only changes shapes costs no delegate and no value."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporters.to_executorch.shapes import separate_weights
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import XNNPACK
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Twins = Callable[[Written, Batch], Batch]
BATCH = ({0: Dim("batch", min=1, max=9)},)


class Attention(nn.Module):
    """Attention over two heads, its projections split off one product."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        heads = [part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.into(x).chunk(3, -1)]
        weights = torch.softmax(heads[0] @ heads[1].transpose(-1, -2), -1)
        return self.out((weights @ heads[2]).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Shapes(nn.Module):
    """One output for each way to change a shape and no value."""

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, ...]:  # [batch, length, 6], [batch, 4, 1, 3]
        row, last = torch.arange(6.0), image.to(memory_format=torch.channels_last)
        return (
            *x.split([1, 5], -1),
            *x.chunk(2, 2),
            x.unbind(2)[1],
            x.expand(x.shape),
            row.expand(x.shape[0], 6) + 0,
            x.unsqueeze(0).squeeze(0).unsqueeze(-1),
            x.reshape(-1, 6),
            x.flatten(1),
            x.unflatten(2, (2, 3)).transpose(0, 1),
            x.relu().unsqueeze(1).expand(-1, 3, -1, -1),
            image.squeeze(2),
            last.flatten(1),
            torch.atan2(last.expand(last.shape), image),
        )


class Halves(nn.Module):
    """The product of an input's halves."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return left * right


@pytest.mark.slow
@pytest.mark.parametrize("shapes", [(), BATCH], ids=["fixed", "dynamic"])
def test_attention_is_cut_at_dynamic_slices_only(
    make_program: MakeProgram, random_table: RandomTable, payloads: Callable[[bytes], list[bytes]], shapes: object
) -> None:
    torch.manual_seed(0)  # a value next to a tie of a dynamic range would be a step apart
    weights = {"into.weight": random_table((48, 16), 4), "out.weight": random_table((16, 16), 4)}
    written = write_file(EXPORTER, make_program(Attention(), (torch.randn(5, 6, 16),), weights, (), shapes), Activations.DYNAMIC)
    assert len(payloads(written.data)) == (2 if shapes else 1)
    assert written.notes == (("portable kernels, not XNNPACK, run 3 slice_copy",) if shapes else ())
    for batch in (1, 9) if shapes else (5,):
        x = (torch.randn(batch, 6, 16),)
        torch.testing.assert_close(EXPORTER.run(written.data, (x,))[0][0], written.lowered.simulate(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_shapes_change_and_no_value(make_program: MakeProgram) -> None:
    def inputs(batch: int, length: int) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, length, 6), torch.randn(batch, 4, 1, 3)

    batch, length = Dim("batch", min=1, max=9), Dim("length", min=1, max=7)
    program = make_program(Shapes(), inputs(5, 4), {}, (), ({0: batch, 1: length}, {0: batch}))
    written = write_file(EXPORTER, program, Activations.NONE)
    assert written.facts == {}
    for sizes in ((1, 1), (5, 4), (9, 7)):
        given = inputs(*sizes)
        for found, expected in zip(EXPORTER.run(written.data, (given,))[0], Shapes()(*given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)  # atan2's last bit is the kernel's own


def test_a_batch_that_lowering_fixes_is_a_fact_of_the_file(make_program: MakeProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    def keep(exported: ExportedProgram, kept: object) -> ExportedProgram:
        return exported

    monkeypatch.setattr(importlib.import_module("qn_deploy.exporters.to_executorch.write"), "core_operators", keep)  # splits stay
    program = make_program(Halves(), (torch.randn(5, 6),), {}, (), BATCH)
    written = write_file(EXPORTER, program, Activations.NONE)
    assert written.facts == {"x, dimension 0, takes only": "5"}
    with pytest.raises(InputError, match="resize"):
        EXPORTER.run(written.data, ((torch.randn(2, 6),),))


class Gelu(nn.Module):
    """GELU by its own formula, and by tanh."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.gelu(x), nn.functional.gelu(x, approximate="tanh")


def test_gelu_by_tanh_is_not_the_exact_one(make_program: MakeProgram, payloads: Callable[[bytes], list[bytes]]) -> None:
    x = (torch.linspace(-6, 6, 1001)[None],)
    written = write_file(EXPORTER, make_program(Gelu(), x, {}, ()), Activations.NONE)
    assert written.notes == () and len(payloads(written.data)) == 1  # XNNPACK computes both
    for found, expected in zip(EXPORTER.run(written.data, (x,))[0], Gelu()(*x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)  # the two are 4.7e-4 apart


def test_mish_and_softplus_keep_the_order_of_channels(make_program: MakeProgram, random_table: RandomTable) -> None:
    x = (torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)),)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Mish(), nn.Conv2d(4, 2, 1), nn.Softplus())
    written = write_file(EXPORTER, make_program(model, x, {"0.weight": random_table((4, 3, 3, 3), 9)}), Activations.STATIC)
    (found,) = EXPORTER.run(written.data, (x,))[0]
    assert torch.allclose(found, written.lowered.simulate(x)[0], rtol=1e-5, atol=1e-6)


class Shared(nn.Module):
    """Convolutions by one weight."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))


class Tied(Shared):
    """Encoder and decoder, as an autoencoder has them; the encoder runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.conv2d(x, self.weight, padding=1).relu(), self.weight)
        return F.conv_transpose2d(x.relu(), self.weight)


class Grouped(Shared):
    """Transposed convolutions of two numbers of groups, one of them twice."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        two = F.conv_transpose2d(F.conv_transpose2d(x, self.weight, groups=2), self.weight, groups=2)
        return two, F.conv_transpose2d(x, self.weight, groups=4)


class Lines(Shared):
    """A convolution of one dimension, twice."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.conv1d(x, self.weight, padding=1).relu(), self.weight)


SHARED: dict[str, tuple[Shared, tuple[int, ...]]] = {
    "tied": (Tied(16, 16, 3, 3), (2, 16, 6, 6)),
    "grouped": (Grouped(16, 8, 3, 3), (2, 16, 5, 5)),
    "lines": (Lines(16, 16, 3), (2, 16, 9)),
}


@pytest.mark.parametrize("name", SHARED)
def test_convolutions_that_read_a_weight_in_several_orders_have_a_constant_for_each(name: str, random_table: RandomTable) -> None:
    model, size = SHARED[name]
    model.weight.data = random_table(tuple(model.weight.shape), 3).dequantize()
    x = torch.randn(size)
    core = torch.export.export(model.eval(), (x,)).run_decompositions()
    separate_weights(core)
    assert len(core.graph.find_nodes(op="placeholder")) == len(core.graph_signature.input_specs) == 2 + 1
    assert all(map(torch.equal, tree_leaves(core.module()(x)), tree_leaves(model(x))))


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.NONE])
@pytest.mark.parametrize("name", SHARED)
def test_a_weight_that_convolutions_read_in_several_orders_gives_each_what_is_right(
    make_program: MakeProgram, random_table: RandomTable, twins: Twins, name: str, activations: Activations
) -> None:
    model, size = SHARED[name]
    table, x = random_table(tuple(model.weight.shape), 3, per_row=False), (torch.randn(size, generator=torch.Generator().manual_seed(0)),)
    written = write_file(EXPORTER, make_program(model, x, {"weight": table}, (x,) if activations.is_static else ()), activations)
    assert written.dense == ()
    if activations.is_static:
        assert all(map(torch.equal, twins(written, x), IntegerReference(written.lowered.exported, XNNPACK)(x)))
    else:
        torch.testing.assert_close(twins(written, x), written.lowered.simulate(x), rtol=1e-5, atol=1e-5)
