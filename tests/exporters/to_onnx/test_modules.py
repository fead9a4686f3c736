from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_onnx import EXPORTER, modules
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]

LAYER = "encoder.layer.0.attention.query"
LAST = "encoder.layer.11.output.dense"


def model(*names: str, source: str = "x") -> onnx.ModelProto:
    """Adds constants of these names to an input, one after the other."""
    values = [source, *(f"v{index}" for index in range(len(names) - 1)), "y"]
    nodes = [helper.make_node("Add", [values[index], name], [values[index + 1]], name) for index, name in enumerate(names)]
    floats = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in (source, "y")]
    constants = [numpy_helper.from_array(np.ones(1, np.float32), name) for name in sorted(set(names))]
    return helper.make_model(helper.make_graph(nodes, "g", floats[:1], floats[1:], constants), opset_imports=[helper.make_opsetid("", 18)])


def stored(proto: onnx.ModelProto) -> set[str]:
    return {entry.name for entry in proto.graph.initializer}


def test_the_name_of_a_module_is_written_once() -> None:
    proto = model(f"{LAYER}.weight/codes", f"{LAYER}.weight/scale", f"{LAYER}.bias", f"{LAST}.bias")
    before = proto.ByteSize()
    modules.shorten(proto)
    assert stored(proto) == {"#a.weight/codes", "#a.weight/scale", "#a.bias", "#b.bias"}
    assert {entry.key: entry.value for entry in proto.metadata_props} == {modules.MODULES: f'["{LAYER}","{LAST}"]'}
    assert proto.graph.node[0].name == f"{LAYER}.weight/codes"  # of an operator: for Netron
    assert proto.ByteSize() < before
    onnx.checker.check_model(proto, full_check=True)


def test_the_whole_names_come_back() -> None:
    proto = model(f"{LAYER}.weight/codes", "plain", "0.weight/scale", f"{LAST}.bias")
    before = proto.SerializeToString()
    modules.shorten(proto)
    assert proto.SerializeToString() != before
    assert modules.load(proto.SerializeToString()).SerializeToString() == before


@pytest.mark.parametrize("names", [("0.weight/codes", "0.weight/scale"), ("body.bias",), ("plain",)])
def test_short_names_stay(names: tuple[str, ...]) -> None:
    proto = model(*names)
    before = proto.SerializeToString()
    modules.shorten(proto)
    assert proto.SerializeToString() == before


def test_inputs_and_outputs_keep_their_names() -> None:
    proto = model(f"{LAYER}.weight", source=f"{LAYER}.x")
    modules.shorten(proto)
    assert proto.graph.input[0].name == proto.graph.node[0].input[0] == f"{LAYER}.x"
    restored = modules.load(model("c.d", source="#a.x").SerializeToString())
    assert restored.graph.node[0].input[0] == "#a.x"


@pytest.mark.parametrize("text", ["", "{}", "[1]", "[" * 100_000, '"abc"'])
def test_damaged_names_of_modules_are_refused(text: str) -> None:
    proto = model("c.d")
    proto.metadata_props.add(key=modules.MODULES, value=text)
    data = proto.SerializeToString()
    for read in (modules.load, EXPORTER.account, EXPORTER.weight_hashes):
        with pytest.raises(InputError, match=r"its metadata qn_deploy\.modules are no list of names; export the model again"):
            read(data)


def test_a_file_says_long_names_once_and_is_read_by_them(make_program: MakeProgram, random_table: RandomTable) -> None:
    name = "a_stage_with_a_long_name.its_first_layer"
    module = nn.Module()
    module.a_stage_with_a_long_name = nn.Module()
    layer = module.a_stage_with_a_long_name.its_first_layer = nn.Linear(16, 32)
    module.forward = lambda x: layer(x)  # type: ignore[method-assign]
    x = (torch.randn(4, 16, generator=torch.Generator().manual_seed(0)),)
    table = random_table((32, 16), 4)
    program = make_program(module, x, {f"{name}.weight": table})
    written = write_file(EXPORTER, program, Activations.STATIC)
    assert written.data.count(name.encode()) == 2  # in the metadata, and of the operator
    assert {f"{name}.weight/{part}" for part in ("codes", "centroids", "scale")} < stored(modules.load(written.data))
    assert {part.name for part in EXPORTER.account(written.data) if part.kind in ("codes", "centroids", "scales")} == {f"{name}.weight"}
    assert sha256(table.int8().numpy().tobytes()).hexdigest() in EXPORTER.table_hashes(written.data)
    assert name.encode() in EXPORTER.dense(written.data)
    assert torch.equal(EXPORTER.run(written.data, (x,))[0][0], EXPORTER.run(EXPORTER.dense(written.data), (x,))[0][0])
