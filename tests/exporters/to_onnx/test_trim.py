from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from qn_deploy.exporters.to_onnx import trim

from .test_passes import X, array, parse, run


def inputs_of(model: ir.Model, operator: str, index: int) -> list[str]:
    return [str(value.name) for node in model.graph if node.op_type == operator and (value := node.inputs[index]) is not None]


@pytest.mark.parametrize(("sizes", "expected"), [("N, 2, 2", [-1, 2, 2]), ("3, 2, 2", [3, 2, 2]), ("N, 2, M", None), ("N, 0, 2", None)])
def test_a_reshape_with_one_unknown_size_needs_no_shape_at_run_time(sizes: str, expected: list[int] | None) -> None:
    body = "<int64[1] zero = {0}, int64[1] one = {1}, int64[2] rest = {2, 2}>"
    body += " { n = Shape (x) b = Slice (n, zero, one) s = Concat <axis = 0> (b, rest) v = Reshape (x, s) y = Neg (v) }"
    model = parse(body, "float[N, 4] x) => (float[N, 2, 2] y")
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    before = run(model, x=x)
    (reshape,) = (node for node in model.graph if node.op_type == "Reshape")
    reshape.outputs[0].shape = ir.Shape([int(size) if size.isdigit() else size for size in sizes.split(", ")])
    trim.settle_shapes(model)
    constant = reshape.inputs[1] is not None and reshape.inputs[1].const_value
    assert (array(reshape.inputs[1]).tolist() if constant else None) == expected
    reshape.outputs[0].shape = None
    assert np.array_equal(run(model, x=x), before)


@pytest.mark.parametrize(("readers", "removed"), [(1, True), (2, False)])
def test_a_reshape_of_a_reshape_reads_what_that_one_reads(readers: int, removed: bool) -> None:
    body = "<int64[2] a = {4, 3}, int64[2] b = {-1, 2}, uint8[2, 6] k = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, "
    body += "float s = {0.5}, uint8 z = {3}>"
    body += " { q = Mul (k, k) r = Reshape (q, a) d = DequantizeLinear (r, s, z) v = Reshape (d, b)"
    body += " e = Abs (d)" if readers == 2 else ""
    body += " y = Mul (v, x) }"
    model = parse(body, "float[6, 2] x) => (float[6, 2] y")
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    before = run(model, x=x)
    trim.join_reshapes(model)
    assert (inputs_of(model, "DequantizeLinear", 0) == ["q"]) == removed
    assert np.array_equal(run(model, x=x), before)


def test_a_reshape_that_copies_a_weight_stays() -> None:
    body = "<int64[2] a = {4, 3}, int64[2] b = {3, 4}, int64[2] c = {2, 6}>"
    body += " { r = Reshape (x, a) w = Reshape (r, b) v = Reshape (r, c) y = Abs (w) }"
    model = parse(body, "float[2, 6] x) => (float[3, 4] y")
    named = next(node for node in model.graph if node.outputs[0].name == "w")
    named.outputs[0].name = "layer_2.weight/int8"
    trim.join_reshapes(model)
    assert inputs_of(model, "Reshape", 0) == ["x", "r", "x"]


def test_equal_constants_of_no_layer_become_one() -> None:
    stored = "float val_1 = {0.5}, float val_2 = {0.5}, float val_3 = {0.25}, uint8 val_4 = {7}, int8 val_5 = {7}"
    stored += ", float[1] val_6 = {0.5}, float[3] b = {1, 2, 3}, float[3] c = {1, 2, 3}"
    body = "{ s = Sum (x, val_1, val_2, val_3, val_6) q = Sum (b, c) k = Sum (val_4, val_4) l = Sum (val_5, val_5) y = Add (s, q) }"
    model = parse(f"<{stored}> {body}", "float[2, 3] x) => (float[2, 3] y")
    trim.share_constants(model)
    assert set(model.graph.initializers) == {"val_1", "val_3", "val_4", "val_5", "val_6", "b", "c"}
    (first, *_) = [node for node in model.graph if node.op_type == "Sum"]
    assert [value.name for value in first.inputs if value is not None] == ["x", "val_1", "val_1", "val_3", "val_6"]


def test_inner_values_get_the_shortest_names_the_most_read_ones_first() -> None:
    body = "{ first = Add (x, val_1) second = Mul (first, first) third = Add (second, b) a = Add (third, first) }"
    model = parse(f"<float val_1 = {{2}}, float[3] b = {{1, 2, 3}}> {body}", "float[2, 3] x) => (float[2, 3] a")
    x = np.ones((2, 3), np.float32)
    before = run(model, x=x)
    trim.strip(model)
    assert [str(node.outputs[0].name) for node in model.graph] == ["c", "d", "e", "a"]  # b is a parameter's name, a an output's
    assert list(model.graph.initializers) == ["b", "f"]
    assert np.array_equal(run(model, x=x), before)


def test_strip_removes_traces_and_keeps_the_names_that_matter() -> None:
    body = "{ w = DequantizeLinear <axis = 0> (k, s, z) r = Gemm <transB = 1> (x, w) y = Abs (r) }"
    model = parse("<int8[3, 4] k = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] s = {1, 2, 1}, int8[3] z = {0, 0, 0}> " + body)
    model.graph.initializers["k"].name = "layer.weight/int8"
    before = run(model, x=X)
    for node in model.graph:
        node.metadata_props["pkg.torch.onnx.stack_trace"] = "File model.py, line 7"
        node.doc_string = "written on my machine"
    model.metadata_props["x"] = "y"
    trim.strip(model)
    data = ir.to_proto(model).SerializeToString()
    assert b"model.py" not in data and b"machine" not in data and b"stack_trace" not in data
    names = [node.name for node in model.graph]
    assert "layer" in names
    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert np.array_equal(run(model, x=X), before)


def test_strip_gives_no_two_nodes_one_name() -> None:
    """onnxruntime refuses to load a model in which two nodes have one name."""
    body = "{ w = DequantizeLinear <axis = 0> (k, s, z) a = Gemm <transB = 1> (x, w) b = Gemm <transB = 1> (x, w) y = Add (a, b) }"
    model = parse("<int8[3, 4] k = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[3] s = {1, 1, 1}, int8[3] z = {0, 0, 0}> " + body)
    model.graph.initializers["k"].name = "layer.weight/int8"
    trim.strip(model)
    names = [node.name for node in model.graph if node.name]
    assert sorted(names) == ["layer", "layer_2"]


def test_strip_knows_the_attributes_of_the_models_own_opset() -> None:
    model = parse("{ y = DFT <axis = 1, onesided = 1> (x) }")  # the axis is an input since opset 20
    model.opset_imports[""] = 18
    trim.strip(model)
    assert [list(node.attributes) for node in model.graph] == [["onesided"]]


def test_strip_keeps_what_says_that_a_spectrum_has_one_side() -> None:
    """That is the default, and yet onnx's shape inference takes all of the frequencies without it, and so does onnxruntime."""
    stored = "int64 step = {2}, float[4] window = {1, 1, 1, 1}, int64 length = {4}"
    body = f"<{stored}> {{ y = STFT <onesided = 1> (x, step, window, length) }}"
    model = parse(body, "float[2, 8, 1] x) => (float[2, 3, 3, 2] y")
    x = np.random.default_rng(0).standard_normal((2, 8, 1), np.float32)
    before = run(model, x=x)
    trim.strip(model)
    assert np.array_equal(run(model, x=x), before)
