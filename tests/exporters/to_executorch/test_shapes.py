"""Every size in the declared range runs, and what only changes shapes costs no delegate and no value."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
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
