from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.ConvTranspose1d(8, 6, 4, stride=2, padding=1), (2, 8, 10)),
    "2d": (lambda: nn.ConvTranspose2d(8, 6, 2, stride=2), (2, 8, 5, 5)),
    "1d, depthwise": (lambda: nn.ConvTranspose1d(12, 24, 6, stride=3, dilation=2, groups=12), (2, 12, 10)),
    "2d, dilated": (lambda: nn.ConvTranspose2d(8, 12, 3, dilation=(2, 1), groups=4), (2, 8, 5, 5)),
    "2d, grouped": (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, groups=2, bias=False), (2, 8, 5, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.NONE])
@pytest.mark.parametrize("name", LAYERS)
def test_a_table_expands_and_the_layer_runs_in_float(
    make_program: MakeProgram,
    random_table: RandomTable,
    optimized: Callable[[bytes], Counter[str]],
    name: str,
    activations: Activations,
) -> None:
    make, size = LAYERS[name]
    layer: Tensor | nn.Module = make()
    table = random_table(tuple(layer.weight.shape), int(layer.weight[0].numel()) // 3, per_row=False)  # type: ignore[union-attr]
    x = (torch.randn(size, generator=torch.Generator().manual_seed(0)),)
    calibration = (x,) if activations is Activations.STATIC else ()
    written = write_file(EXPORTER, make_program(nn.Sequential(layer), x, {"0.weight": table}, calibration), activations)
    (shipped,), (simulated,) = EXPORTER.run(written.data, (x,))[0], written.lowered.simulate(x)
    torch.testing.assert_close(shipped, simulated, rtol=1e-5, atol=1e-5)
    assert optimized(written.data)["ConvTranspose"] == 1
    if activations is Activations.STATIC:  # onnxruntime has no int8 kernel: said, and no error
        assert written.notes == ("onnxruntime has no int8 kernel for 0.weight (ConvTranspose): run in float",)


def test_an_int8_layer_sums_integers(make_program: MakeProgram, random_table: RandomTable) -> None:
    layer = nn.ConvTranspose1d(8, 6, 4, stride=2)
    table = random_table((8, 6, 4), 8, per_row=False)
    x = (torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0)),)
    model = onnx.load_model_from_string(
        write_file(EXPORTER, make_program(nn.Sequential(layer), x, {"0.weight": table}, (x,)), Activations.STATIC).data
    )
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    (convolution,) = [node for node in model.graph.node if node.op_type == "ConvTranspose"]
    for name in convolution.input[:2]:
        assert makers[name].op_type == "DequantizeLinear"
        assert constants[makers[name].input[1]] == 1
    bias = constants[convolution.input[2]]
    assert np.array_equal(bias, np.rint(bias))
    assert np.abs(bias).max() > 1
