"""Layers that keep their tables: one file, the same bits with our library and without it."""

from __future__ import annotations

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
from onnx import numpy_helper
from torch import nn

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporters.to_onnx.functions import DOMAIN, inlined
from qn_deploy.exporters.to_onnx.library import build_library
from qn_deploy.exporters.to_onnx.options import OnnxOptions
from qn_deploy.exporters.to_onnx.read import session_options
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight

MakeProgram = Callable[..., Program]
RandomTable = Callable[..., PQWeight]
SETTINGS = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
COMPRESSED = OnnxOptions(memory="compressed")


def run(data: bytes, x: torch.Tensor, library: bool, level: str = "ORT_ENABLE_ALL") -> np.ndarray:
    options = session_options()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if library:
        options.register_custom_ops_library(str(build_library()))
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def check_both_worlds(program: Program, activations: Activations, x: torch.Tensor) -> Written:
    expanded = write_file(EXPORTER, program, activations)
    written = write_file(EXPORTER, program, activations, COMPRESSED)
    expected = run(expanded.data, x, library=False)
    for library, level in ((False, "ORT_ENABLE_ALL"), (True, "ORT_ENABLE_ALL"), (True, "ORT_DISABLE_ALL")):
        np.testing.assert_array_equal(run(written.data, x, library, level), expected, err_msg=f"library {library}, {level}")
    assert EXPORTER.weight_hashes(expanded.data) <= EXPORTER.weight_hashes(written.data) | EXPORTER.weight_hashes(expanded.data)
    np.testing.assert_array_equal(EXPORTER.run(EXPORTER.dense(written.data), ((x,)[:1],))[0][0], expected)
    onnx.checker.check_model(inlined(onnx.load_model_from_string(written.data)), full_check=True)
    return written


@given(
    columns=st.integers(1, 8),
    block=st.sampled_from([1, 2, 4, 8]),
    books=st.integers(1, 4),
    size=st.sampled_from([2, 16, 256]),
    out=st.sampled_from([1, 40, 64, 130]),
    rank=st.integers(2, 4),
    bias=st.booleans(),
    per_row=st.booleans(),
    activations=st.sampled_from([Activations.STATIC, Activations.DYNAMIC]),
)
@settings(SETTINGS, max_examples=4)
def test_a_linear_layer_gives_the_same_bits_in_both_worlds(
    make_program: MakeProgram,
    random_table: RandomTable,
    columns: int,
    block: int,
    books: int,
    size: int,
    out: int,
    rank: int,
    bias: bool,
    per_row: bool,
    activations: Activations,
) -> None:
    table = random_table((out, columns * block), block, size, min(books, columns), per_row)
    x = torch.randn(9, *(3, 2)[: rank - 2], columns * block, generator=torch.Generator().manual_seed(1))
    program = make_program(nn.Sequential(nn.Linear(columns * block, out, bias)), (x,), {"0.weight": table})
    written = check_both_worlds(program, activations, x)
    assert any("1 layer keeps its table in memory" in note for note in written.notes)
    assert hash_of(table) in EXPORTER.weight_hashes(written.data)


def hash_of(table: PQWeight) -> str:
    import hashlib

    return hashlib.sha256(table.int8().contiguous().numpy().tobytes()).hexdigest()


@given(images=st.integers(1, 3), size=st.integers(1, 9), bias=st.booleans())
@settings(SETTINGS, max_examples=2)
def test_a_convolution_of_one_pixel_does(make_program: MakeProgram, random_table: RandomTable, images: int, size: int, bias: bool) -> None:
    weights = {"0.weight": random_table((96, 8, 1, 1), 2, 16, 2), "2.weight": random_table((24, 96, 1, 1), 4, 16)}
    model = nn.Sequential(nn.Conv2d(8, 96, 1, bias=bias), nn.ReLU(), nn.Conv2d(96, 24, 1))
    x = torch.randn(images, 8, size, size, generator=torch.Generator().manual_seed(1))
    written = check_both_worlds(make_program(model, (x,), weights), Activations.STATIC, x)
    assert any("2 layers keep their tables" in note for note in written.notes)


def operators(data: bytes, tmp_path: Path, library: bool) -> Counter[str]:
    options = session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    if library:
        options.register_custom_ops_library(str(build_library()))
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize(
    ("activations", "fused", "kept"), [("static", "QGemm", "TableLinear"), ("dynamic", "DynamicQuantizeMatMul", "DynamicTableLinear")]
)
def test_each_world_runs_its_own_operator(
    make_program: MakeProgram, random_table: RandomTable, tmp_path: Path, activations: str, fused: str, kept: str
) -> None:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    program = make_program(nn.Sequential(nn.Linear(32, 64)), (x,), {"0.weight": random_table((64, 32), 2)})
    data = write_file(EXPORTER, program, Activations(activations), COMPRESSED).data
    stock, ours = operators(data, tmp_path, False), operators(data, tmp_path, True)
    assert (stock[fused], stock[kept]) == (1, 0)
    assert (ours[fused], ours[kept]) == (0, 1)


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
        ("0.weight/centroids", lambda values: values[:-1].copy(), "qn_deploy"),
        ("0.weight/centroids", lambda values: np.full_like(values, -128), "a centroid is -128"),
        ("offsets/", lambda values: values + 1, "offsets"),
        ("size/", lambda values: values * 2, "qn_deploy"),
        ("0.weight/scale", lambda values: values[:-1].copy(), "weight's scale has another shape"),
    ],
)
def test_a_damaged_table_is_refused_when_the_session_loads(
    make_program: MakeProgram, random_table: RandomTable, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    program = make_program(nn.Sequential(nn.Linear(32, 64)), (x,), {"0.weight": random_table((64, 32), 2, 16, 2)})
    data = damaged(write_file(EXPORTER, program, Activations.DYNAMIC, COMPRESSED).data, name, change)
    with pytest.raises(Exception, match=message):
        run(data, x, library=True)
