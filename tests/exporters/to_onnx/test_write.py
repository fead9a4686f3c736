from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporters.to_onnx.metadata import VNNI
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.integer import IntegerReference
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.rules import ONNXRUNTIME
from qn_deploy.program.program import Program
from qn_deploy.recipe import Recipe, Rule, Table
from qn_deploy.targets import TARGETS
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight

Programs = Callable[[str], Program]
MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
Write = Callable[[str, str, Activations], Written]
Optimized = Callable[[bytes], "Counter[str]"]

FORMS = [("operators", Activations.STATIC), ("residual", Activations.STATIC), ("words", Activations.DYNAMIC), ("tied", Activations.NONE)]
forms = pytest.mark.parametrize(("name", "activations"), FORMS, ids=[f"{name}-{activations.value}" for name, activations in FORMS])
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def model_of(written: Written) -> onnx.ModelProto:
    return onnx.load_model_from_string(written.data)


@forms
def test_standard_operators_only(write: Write, name: str, activations: Activations) -> None:
    model = model_of(write(name, "onnx", activations))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]  # uint4
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_without_packed_codes_the_opset_is_18(make_program: MakeProgram, random_table: RandomTable) -> None:
    x = (torch.randn(2, 16),)
    program = make_program(nn.Sequential(nn.Linear(16, 32)), x, {"0.weight": random_table((32, 16), 4, 17)}, ())
    assert [entry.version for entry in model_of(write_file(EXPORTER, program, Activations.DYNAMIC)).opset_import] == [18]


@pytest.mark.parametrize("name", ["two tables", "int4", "16-bit codes", "local codebooks"])
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC])
def test_every_kind_of_table_folds_into_the_fused_operator(
    make_program: MakeProgram, random_table: RandomTable, optimized: Optimized, name: str, activations: Activations
) -> None:
    first = random_table((48, 32), 4, books=4)
    weight: CompressedWeight = {
        "two tables": replace(first, residual=replace(random_table((48, 32), 4, 300, seed=1), scale=first.scale)),
        "int4": IntWeight((torch.arange(48 * 32).reshape(48, 32) % 15 - 7).to(torch.int8), first.scale, bits=4),
        "16-bit codes": random_table((48, 32), 4, 300),
        "local codebooks": first,
    }[name]
    x = (torch.randn(8, 32, generator=torch.Generator().manual_seed(0)),)
    written = write_file(EXPORTER, make_program(nn.Sequential(nn.Linear(32, 48)), x, {"0.weight": weight}), activations)
    found = optimized(written.data)
    assert found["QGemm" if activations is Activations.STATIC else "DynamicQuantizeMatMul"] == 1
    assert not found.keys() & {"Gather", "Clip", "Reshape", "Gemm", "MatMul"}
    assert sha256(weight.int8().numpy().tobytes()).hexdigest() in EXPORTER.weight_hashes(written.data)
    shipped, twin = (EXPORTER.run(data, (x,))[0][0] for data in (written.data, EXPORTER.dense(written.data)))
    assert torch.equal(shipped, twin)
    if activations is Activations.STATIC:
        assert torch.equal(shipped, IntegerReference(written.lowered.exported, ONNXRUNTIME)(x)[0])


@forms
@pytest.mark.parametrize("level", LEVELS)
def test_tables_and_dense_weights_agree_to_the_bit_at_each_optimisation_level(
    programs: Programs, write: Write, name: str, activations: Activations, level: str
) -> None:
    data = write(name, "onnx", activations).data
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.add_session_config_entry("session.x64quantprecision", "1")
    outputs = []
    for file in (data, EXPORTER.dense(data)):
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]
        outputs.append(session.run(None, dict(zip(names, (x.numpy() for x in programs(name).golden.inputs), strict=True))))
    assert all(one.tobytes() == other.tobytes() for one, other in zip(*outputs, strict=True))


def test_the_file_tells_where_it_comes_from(make_program: MakeProgram, random_table: RandomTable) -> None:
    table = random_table((32, 16), 4)
    program = make_program(nn.Sequential(nn.Linear(16, 32)), (torch.randn(4, 16),), {"0.weight": table})
    recipe = Recipe((Rule(Table(4, 16)),), title="mine")
    written = write_file(EXPORTER, replace(program, recipe=recipe), Activations.STATIC, target=TARGETS["x86"])
    told = {entry.key: entry.value for entry in model_of(written).metadata_props}
    assert set(told) == {"qn_deploy.version", "qn_deploy.activations", "qn_deploy.weights", "qn_deploy.recipe"}
    assert told["qn_deploy.weights"] == sha256(sha256(table.int8().numpy().tobytes()).digest()).hexdigest()
    assert Recipe.from_json(told["qn_deploy.recipe"]) == recipe
    assert (told["qn_deploy.version"], told["qn_deploy.activations"]) == (version("qn-deploy"), "static")
    session = onnxruntime.InferenceSession(written.data, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map == told
    assert written.facts == {"opset": "21", **VNNI}


@forms
def test_nothing_of_the_users_machine_is_in_the_file(write: Write, name: str, activations: Activations) -> None:
    written = write(name, "onnx", activations)
    model = model_of(written)
    assert all(entry.key.startswith("qn_deploy.") for entry in model.metadata_props)
    for part in (model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        assert not part.doc_string
        assert not part.metadata_props
    assert not model.graph.value_info
    for trace in (b"stack_trace", b".py", b"forward", b"torch", b"/home", b"/work"):
        assert trace not in written.data


@pytest.mark.parametrize(("name", "activations"), FORMS[2:])  # static ones: tests/program/test_build.py
def test_the_same_program_gives_the_same_bytes(programs: Programs, write: Write, name: str, activations: Activations) -> None:
    assert write_file(EXPORTER, programs(name), activations).data == write(name, "onnx", activations).data


def zero_points(model: onnx.ModelProto, of_weights: bool) -> list[onnx.TensorProto]:
    stored = {entry.name: entry for entry in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(len(node.input) == 3 for node in nodes), "a zero point is left out"
    return [stored[node.input[2]] for node in nodes if node.input[0].endswith("/int8") == of_weights]


@pytest.mark.parametrize("name", ["operators", "residual", "shared"])
def test_each_weight_has_an_explicit_zero_point_of_its_own(write: Write, name: str) -> None:
    """Left out, onnxruntime loses the fusion of Gemm; shared, it refuses to load."""
    found = zero_points(model_of(write(name, "onnx", Activations.STATIC)), of_weights=True)
    assert len({entry.name for entry in found}) == len(found) >= 3
    assert all(entry.data_type == TensorProto.INT8 and not numpy_helper.to_array(entry).any() for entry in found)


def test_onnxruntime_refuses_two_weights_that_share_a_zero_point(write: Write) -> None:
    """The reason for the rule above: should this ever pass, the rule can go."""
    model = model_of(write("shared", "onnx", Activations.STATIC))
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[2].startswith("layer.weight/zero"):
            node.input[2] = "layer.weight/zero"
    with pytest.raises(Exception, match="Attempt to replace the existing tensor"):
        EXPORTER.run(model.SerializeToString(), ())


@pytest.mark.parametrize(("rows", "spread"), [(32, 0), (33, 1)])
def test_many_zero_points_are_made_when_the_session_loads(
    make_program: MakeProgram, random_table: RandomTable, optimized: Optimized, rows: int, spread: int
) -> None:
    x = (torch.randn(8, 16, generator=torch.Generator().manual_seed(0)),)
    program = make_program(nn.Sequential(nn.Linear(16, rows)), x, {"0.weight": random_table((rows, 16), 4)})
    written = write_file(EXPORTER, program, Activations.STATIC)
    casts = [node for node in model_of(written).graph.node if node.op_type == "Cast" and node.input[0] == "0.weight/scale"]
    assert len(casts) == spread
    assert sum(entry.name == "0.weight/zero" for entry in model_of(written).graph.initializer) == 1 - spread
    assert optimized(written.data)["QGemm"] == 1
    assert torch.equal(EXPORTER.run(written.data, (x,))[0][0], IntegerReference(written.lowered.exported, ONNXRUNTIME)(x)[0])


def test_attributes_that_say_what_their_absence_says_are_left_out(write: Write) -> None:
    convolutions = {
        node.name: node for node in model_of(write("operators", "onnx", Activations.STATIC)).graph.node if node.op_type == "Conv"
    }
    told = {name: {entry.name for entry in node.attribute} for name, node in convolutions.items()}
    assert told == {
        "strided": {"strides", "pads", "kernel_shape"},
        "grouped": {"group", "kernel_shape"},
        "depthwise": {"group", "pads", "kernel_shape"},
    }


@pytest.mark.parametrize("name", ["operators", "residual", "shared"])
def test_activations_are_uint8(write: Write, name: str) -> None:
    """With int8 ones a fork is computed in float, see test_every_operator_of_a_small_network_is_fused."""
    found = zero_points(model_of(write(name, "onnx", Activations.STATIC)), of_weights=False)
    assert {entry.data_type for entry in found} == {TensorProto.UINT8}


@pytest.mark.parametrize(
    ("name", "activations", "layers"),
    [
        ("residual", Activations.STATIC, {"stem", "first", "second", "classifier"}),
        ("words", Activations.NONE, {"up", "down", "out"}),
        ("words", Activations.DYNAMIC, {"up", "down", "out"}),
        ("shared", Activations.STATIC, {"layer", "layer_2", "layer_3"}),
    ],
)
def test_the_layers_keep_their_names(write: Write, name: str, activations: Activations, layers: set[str]) -> None:
    assert {node.name for node in model_of(write(name, "onnx", activations)).graph.node if node.name} == layers


def test_inputs_keep_their_names_and_outputs_are_numbered(write: Write) -> None:
    many = model_of(write("operators", "onnx", Activations.STATIC)).graph
    assert [entry.name for entry in many.input] == ["x"]
    assert [entry.name for entry in many.output] == [f"output_{index}" for index in range(5)]
    one = model_of(write("words", "onnx", Activations.DYNAMIC)).graph
    assert [entry.name for entry in (*one.input, *one.output)] == ["tokens", "output"]


def test_dynamic_dimensions_are_open_in_the_file_and_fixed_ones_are_not(write: Write) -> None:
    tokens = model_of(write("words", "onnx", Activations.DYNAMIC)).graph.input[0].type.tensor_type.shape.dim
    assert [entry.WhichOneof("value") for entry in tokens] == ["dim_param", "dim_param"]
    image = model_of(write("residual", "onnx", Activations.STATIC)).graph.input[0].type.tensor_type.shape.dim
    assert [entry.dim_value for entry in image] == [0, 3, 12, 12]


@pytest.mark.parametrize("shape", [(16, 16), (2, 8, 16)], ids=["2d", "3d"])
def test_a_feed_forward_layer_is_fused_on_any_number_of_dimensions(
    make_program: MakeProgram, random_table: RandomTable, optimized: Optimized, shape: tuple[int, ...]
) -> None:
    x = (torch.randn(*shape, generator=torch.Generator().manual_seed(0)),)
    weights = {"0.weight": random_table((32, 16), 4), "2.weight": random_table((16, 32), 4)}
    program = make_program(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)), x, weights)
    written = write_file(EXPORTER, program, Activations.STATIC)
    found = optimized(written.data)
    assert found["QGemm"] == 2
    assert not found.keys() & {"Gemm", "MatMul", "Relu"}
    assert torch.equal(EXPORTER.run(written.data, (x,))[0][0], IntegerReference(written.lowered.exported, ONNXRUNTIME)(x)[0])


class Wide(nn.Module):
    """A quarter of a million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))
        self.out = nn.Linear(64, 2000, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + nn.functional.gelu(layer(x))
        scores: Tensor = self.out(x)
        return scores


def test_the_file_is_little_more_than_its_codes(make_program: MakeProgram, random_table: RandomTable) -> None:
    tied = random_table((2000, 64), 8, 256, per_row=False)
    weights = {"embed.weight": tied, "out.weight": tied, **{f"layers.{i}.weight": random_table((64, 64), 8, 64, seed=i) for i in range(6)}}
    program = make_program(Wide(), (torch.randint(2000, (2, 9)),), weights, ())
    theory = tied.nbytes + sum(program.weights[f"layers.{i}.weight"].nbytes + 4 * 64 for i in range(6))
    assert len(write_file(EXPORTER, program, Activations.DYNAMIC).data) <= 1.05 * theory + 24 * 1024


def test_an_int8_weight_is_stored_as_it_is(programs: Programs, write: Write) -> None:
    weight = programs("residual").weights["stem.weight"]
    assert isinstance(weight, IntWeight)
    stored = {
        entry.name: numpy_helper.to_array(entry) for entry in model_of(write("residual", "onnx", Activations.STATIC)).graph.initializer
    }
    assert stored["stem.weight/int8"].tobytes() == weight.values.numpy().tobytes()
    assert stored["stem.weight/scale"].tobytes() == weight.scale.numpy().tobytes()
