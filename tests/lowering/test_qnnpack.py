"""The QNNPACK scheme against torch's own QNNPACK engine: the same uint8 activations, one scale for each weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from qn_deploy.compression import compress
from qn_deploy.errors import ExportError
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int8, Recipe, Rule, Table
from qn_deploy.weights.compressed import IntWeight, PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default


@pytest.fixture
def engine() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    yield
    torch.backends.quantized.engine = before


def grids(program: Program) -> list[tuple[float, int]]:
    """(scale, zero point as uint8) of the input and of the output of a layer."""
    nodes = [node for node in lower(program, Form(Activations.QNNPACK)).exported.graph.nodes if node.target is dequantize]
    return [(node.args[1], node.args[2] + 128) for node in nodes if node.args[3] == -128]


def on_qnnpack(program: Program, layer: nn.Module, weight: PQWeight, x: Tensor) -> Tensor:
    (scale, zero), (out_scale, out_zero) = grids(program)
    values = torch._make_per_tensor_quantized_tensor(weight.int8(), weight.scale.item(), 0)
    if isinstance(layer, nn.Conv2d):
        packed = torch.ops.quantized.conv2d_prepack(values, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        compute = torch.ops.quantized.conv2d
    else:
        packed, compute = torch.ops.quantized.linear_prepack(values, layer.bias), torch.ops.quantized.linear
    result: Tensor = compute(torch.quantize_per_tensor(x, scale, zero, torch.quint8), packed, out_scale, out_zero).dequantize()
    return result


@pytest.mark.slow
@pytest.mark.skipif("qnnpack" not in torch.backends.quantized.supported_engines, reason="this torch was built without QNNPACK")
@pytest.mark.parametrize("name", ["linear", "conv", "strided conv", "depthwise"])
def test_both_runtimes_are_within_a_step_of_qnnpack(make_program: MakeProgram, random_table: RandomTable, engine: None, name: str) -> None:
    draw = torch.Generator().manual_seed(0)
    layer, x, block = {
        "linear": (nn.Linear(32, 24), torch.randn(64, 32, generator=draw), 4),
        "conv": (nn.Conv2d(8, 16, 3, padding=1), torch.randn(4, 8, 9, 9, generator=draw), 9),
        "strided conv": (nn.Conv2d(8, 16, 3, stride=2), torch.randn(4, 8, 9, 9, generator=draw), 9),
        "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.randn(4, 8, 9, 9, generator=draw), 9),
    }[name]
    table = random_table(tuple(layer.weight.shape), block, per_row=False)
    program = make_program(nn.Sequential(layer), (x,), {"0.weight": table})
    expected = on_qnnpack(program, layer, table, x)
    step = grids(program)[1][0]
    for exporter in find_exporters().values():
        written = write_file(exporter, program, Activations.QNNPACK)
        (found,) = exporter.run(written.data, ((x,),))[0]
        assert torch.equal(found, IntegerReference(written.lowered.exported, exporter.rules)((x,))[0])
        assert ((found - expected) / step).abs().max() < 1.001
        assert ((found - expected) / step).abs().gt(0.5).float().mean() < 0.01


def test_a_recipe_per_tensor_gives_each_weight_one_scale() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    recipe = Recipe((Rule(Table(4, 16), name="0.*"), Rule(Int8())), per_tensor=True)
    small = compress(capture(model, (torch.randn(2, 64),)), recipe)
    assert [type(weight) for weight in small.weights.values()] == [PQWeight, IntWeight]
    assert all(weight.scale.numel() == 1 for weight in small.weights.values())
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_scale_for_each_row_is_refused_by_name(make_program: MakeProgram, random_table: RandomTable) -> None:
    program = make_program(nn.Sequential(nn.Linear(16, 8)), (torch.randn(4, 16),), {"0.weight": random_table((8, 16), 4)})
    with pytest.raises(ExportError, match=r"one scale for each weight; 0\.weight and 0 others have one for each row\. Compress by"):
        lower(program, Form(Activations.QNNPACK))
