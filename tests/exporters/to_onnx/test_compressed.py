"""Layers that keep their tables: one file, the same bits with our library and without it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporters.to_onnx.compressed import keep_tables
from qn_deploy.exporters.to_onnx.functions import DOMAIN
from qn_deploy.exporters.to_onnx.library import build_library
from qn_deploy.exporters.to_onnx.options import OnnxOptions
from qn_deploy.exporters.to_onnx.read import session_options
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


def run(data: bytes, x: np.ndarray, library: bool, level: str = "ORT_ENABLE_ALL") -> np.ndarray:
    options = session_options()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if library:
        options.register_custom_ops_library(str(build_library()))
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def layer(weight: PQWeight, kind: str, dimensions: int, bias: np.ndarray | None) -> onnx.ModelProto:
    """One layer as `write` gives it before tables are kept: static as Gemm, MatMul or Conv, dynamic as MatMulInteger."""
    books, size, d = weight.centroids.shape
    name, node = "0.weight", helper.make_node
    scale = weight.scale.numpy() if len(weight.scale) > 1 else weight.scale.numpy()[0]
    constants: dict[str, object] = {
        f"{name}/codes": weight.codes.numpy(),
        f"{name}/offsets": weight.offsets.numpy(),
        f"{name}/centroids": weight.centroids.reshape(books * size, d).numpy(),
        f"{name}/scale": scale,
        f"{name}/zero": np.zeros_like(scale, np.int8),
        "shape": np.array(weight.shape, np.int64),
        "bias": bias,
        "x_scale": np.float32(0.03),
        "x_zero": np.uint8(131),
        "y_scale": np.float32(0.11),
        "y_zero": np.uint8(120),
    }
    nodes = [
        node("Cast", [f"{name}/codes"], ["c"], to=TensorProto.INT32),
        node("Add", ["c", f"{name}/offsets"], ["r"]),
        node("Gather", [f"{name}/centroids", "r"], ["g"]),
        node("Reshape", ["g", "shape"], [f"{name}/int8"]),
    ]
    biases = [] if bias is None else ["bias"]
    if kind == "MatMulInteger":
        nodes += [
            node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
            node("Transpose", [f"{name}/int8"], ["wt"], perm=[1, 0]),
            node("MatMulInteger", ["xq", "wt", "xz"], ["a"], name="0"),
            node("Cast", ["a"], ["f"], to=TensorProto.FLOAT),
            node("Mul", ["xs", f"{name}/scale"], ["s"]),
            node("Mul", ["f", "s"], ["p" if biases else "y"]),
            *([node("Add", ["p", "bias"], ["y"])] if biases else []),
        ]
    else:
        nodes += [
            node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
            node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xf"]),
            node("DequantizeLinear", [f"{name}/int8", f"{name}/scale", f"{name}/zero"], ["wf"], axis=0),
            *([node("Transpose", ["wf"], ["wt"], perm=[1, 0])] if kind == "MatMul" else []),
            node(kind, ["xf", "wt" if kind == "MatMul" else "wf", *biases], ["yf"], name="0", **({"transB": 1} if kind == "Gemm" else {})),
            node("QuantizeLinear", ["yf", "y_scale", "y_zero"], ["yq"]),
            node("DequantizeLinear", ["yq", "y_scale", "y_zero"], ["y"]),
        ]
    used = {source for entry in nodes for source in entry.input} & constants.keys()
    initializers = [numpy_helper.from_array(np.asarray(constants[entry]), entry) for entry in sorted(used)]
    values = [helper.make_tensor_value_info(entry, TensorProto.FLOAT, [None] * dimensions) for entry in "xy"]
    graph = helper.make_graph(nodes, "layer", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.slow
@given(
    kind=st.sampled_from(("Gemm", "MatMul", "Conv", "MatMulInteger")),
    columns=st.integers(1, 40),
    block=st.sampled_from([1, 2, 3, 4, 8]),
    books=st.integers(1, 6),
    size=st.sampled_from([2, 16, 17, 256]),
    out=st.sampled_from([1, 40, 64, 130]),
    rows=st.sampled_from([1, 2, 9, 33]),
    several=st.booleans(),
    biased=st.booleans(),
    per_row=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(SETTINGS, max_examples=30)
def test_a_layer_gives_the_same_bits_in_both_worlds(
    random_table: RandomTable,
    kind: str,
    columns: int,
    block: int,
    books: int,
    size: int,
    out: int,
    rows: int,
    several: bool,
    biased: bool,
    per_row: bool,
    seed: int,
) -> None:
    inputs = columns * block
    weight = random_table((out, inputs, *((1, 1) if kind == "Conv" else ())), block, size, min(books, columns), per_row)
    rng = np.random.default_rng(seed)
    sizes = (1 + several, inputs, rows, 3) if kind == "Conv" else (*((2,) if several and kind != "Gemm" else ()), rows, inputs)
    x = rng.normal(size=sizes).astype(np.float32)
    bias = rng.normal(size=out).astype(np.float32) if biased and kind != "MatMul" else None
    model = layer(weight, kind, x.ndim, bias)
    expected = run(model.SerializeToString(), x, library=False)
    assert keep_tables(model, {"0.weight": weight}) == ("0.weight",)
    data = model.SerializeToString()
    onnx.checker.check_model(model, full_check=True)
    for library, level in ((False, "ORT_ENABLE_ALL"), (True, "ORT_ENABLE_ALL"), (True, "ORT_DISABLE_ALL")):
        np.testing.assert_array_equal(run(data, x, library, level), expected, err_msg=f"library {library}, {level}")
    assert hashlib.sha256(weight.int8().contiguous().numpy().tobytes()).hexdigest() in EXPORTER.weight_hashes(data)
    np.testing.assert_array_equal(run(EXPORTER.dense(data), x, library=False), expected)


def operators(data: bytes, tmp_path: Path, library: bool) -> Counter[str]:
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    if library:
        options.register_custom_ops_library(str(build_library()))
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize(
    ("kind", "fused", "kept"),
    [
        ("Gemm", "QGemm", "TableLinear"),
        ("MatMul", "QLinearMatMul", "TableMatMul"),
        ("Conv", "QLinearConv", "TableConv"),
        ("MatMulInteger", "DynamicQuantizeMatMul", "DynamicTableLinear"),
    ],
)
def test_each_world_runs_its_own_operator(random_table: RandomTable, tmp_path: Path, kind: str, fused: str, kept: str) -> None:
    weight = random_table((64, 32, *((1, 1) if kind == "Conv" else ())), 2)
    model = layer(weight, kind, 4 if kind == "Conv" else 2, None)
    keep_tables(model, {"0.weight": weight})
    stock, ours = (operators(model.SerializeToString(), tmp_path, library) for library in (False, True))
    assert (stock[fused], stock[kept]) == (1, 0)
    assert (ours[fused], ours[kept]) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("activations", [Activations.STATIC, Activations.DYNAMIC])
def test_a_written_model_gives_them_too(make_program: MakeProgram, random_table: RandomTable, activations: Activations) -> None:
    weights = {"0.weight": random_table((96, 16), 2, 16, 2), "2.weight": random_table((24, 96), 4, 16)}
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    program = make_program(nn.Sequential(nn.Linear(16, 96), nn.ReLU(), nn.Linear(96, 24, bias=False)), (x,), weights)
    expanded, written = (write_file(EXPORTER, program, activations, OnnxOptions(memory=memory)) for memory in ("expanded", "compressed"))
    assert any("2 layers keep their tables in memory" in note for note in written.notes)
    expected = run(expanded.data, x.numpy(), library=False)
    for library in (False, True):
        np.testing.assert_array_equal(run(written.data, x.numpy(), library), expected)
    (found,) = EXPORTER.run(written.data, ((x,),))[0]
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.slow
def test_auto_keeps_what_pays_and_a_shared_table_is_expanded(make_program: MakeProgram, random_table: RandomTable) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small, self.large, self.twice = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.twice(torch.relu(self.twice(torch.relu(self.large(torch.relu(self.small(x)))))))

    weights = {f"{name}.weight": random_table((64, 64), 4, size) for name, size in (("small", 16), ("large", 256), ("twice", 16))}
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    program = make_program(Model(), (x,), weights)
    for memory, expected in (("expanded", set()), ("auto", {"small"}), ("compressed", {"small", "large"})):
        written = write_file(EXPORTER, program, Activations.STATIC, OnnxOptions(memory=memory))
        assert {node.name for node in onnx.load_model_from_string(written.data).graph.node if node.domain == DOMAIN} == expected


def damaged(data: bytes, name: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    model = onnx.load_model_from_string(data)
    (entry,) = (entry for entry in model.graph.initializer if entry.name.startswith(name))
    entry.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(entry)), entry.name))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("0.weight/codes", lambda codes: codes[:, :-1].copy(), "the codes do not fill the weight"),
        ("0.weight/centroids", lambda values: values[:-1].copy(), "the centroids do not fill the codebooks"),
        ("0.weight/centroids", lambda values: np.full_like(values, -128), "a centroid is -128"),
        ("offsets/", lambda values: np.sort(values * (np.arange(16) != 8)), "the offsets are not those of equal codebooks"),
        ("size/", lambda values: values * 2, "an offset for each column"),
        ("0.weight/scale", lambda values: values[:-1].copy(), "weight's scale has another shape"),
    ],
)
def test_a_damaged_table_is_refused_when_the_session_loads(
    random_table: RandomTable, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    weight = random_table((64, 32), 2, 16, 2)
    model = layer(weight, "MatMulInteger", 2, None)
    keep_tables(model, {"0.weight": weight})
    with pytest.raises(Exception, match=message):
        run(damaged(model.SerializeToString(), name, change), np.zeros((5, 32), np.float32), library=True)
