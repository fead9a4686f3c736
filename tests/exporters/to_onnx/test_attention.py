from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import CompressedWeight, PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Optimized = Callable[[bytes], "Counter[str]"]


class Packed(nn.Module):
    """The three projections are one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]  # type: ignore[no-any-return]


class Separate(nn.Module):
    """Four linear layers around scaled dot-product attention, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC, Activations.NONE])
@pytest.mark.parametrize(("kind", "layers"), [(Packed, 2), (Separate, 4)])
def test_projections_are_fused_and_what_is_between_them_goes_through(
    make_program: MakeProgram,
    random_table: RandomTable,
    optimized: Optimized,
    kind: type[nn.Module],
    layers: int,
    activations: Activations,
) -> None:
    module = kind().eval()
    weights: dict[str, CompressedWeight] = {
        name: random_table(tuple(parameter.shape), 4) for name, parameter in module.named_parameters() if parameter.ndim == 2
    }
    shapes = ({0: torch.export.Dim("batch", min=1, max=16)},)
    x = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(0))
    calibration = ((x,),) if activations is Activations.STATIC else ()
    written = write_file(EXPORTER, make_program(module, (x,), weights, calibration, shapes), activations)
    found = optimized(written.data)
    if activations is not Activations.NONE:
        # Of the dynamic ones, layers with one input share its quantization, and become MatMulIntegerToFloat.
        fused = ("QGemm",) if activations is Activations.STATIC else ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")
        assert sum(found[operator] for operator in fused) == layers
        assert not found.keys() & {"Gemm", "MatMulInteger"}
    for values in (x, x[:1]):
        (shipped,), (simulated,) = EXPORTER.run(written.data, ((values,),))[0], written.lowered.simulate((values,))
        # An input of a layer on the border between two steps may fall to either side on another processor: that moves one token.
        tokens = 20 * torch.log10(simulated.norm(dim=-1) / (shipped - simulated).norm(dim=-1))
        assert tokens.min() > 35
        assert activations is Activations.STATIC or tokens.median() > 80
        assert torch.equal(shipped, EXPORTER.run(EXPORTER.dense(written.data), ((values,),))[0][0])
