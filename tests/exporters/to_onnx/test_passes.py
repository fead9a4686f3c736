from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from qn_deploy.exporters.to_onnx import EXPORTER, linears, passes
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight, codes_dtype


def parse(body: str, signature: str = "float[2, 4] x) => (float[2, 3] y") -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> model ({signature}) {body}'))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    batch = tuple(torch.from_numpy(array) for array in inputs.values())
    found: np.ndarray = EXPORTER.run(proto.SerializeToString(), (batch,), optimized=False)[0][0].numpy()
    return found


def array(value: ir.Value | None) -> np.ndarray:
    assert value is not None and value.const_value is not None
    return value.const_value.numpy()


def input_names(nodes: list[ir.Node], index: int) -> list[str]:
    return [str(value.name) for node in nodes if (value := node.inputs[index]) is not None]


X = np.array([[0.0, 1.0, -1.0, 2.0], [3.0, -3.0, 0.5, 0.25]], np.float32)
TABLE = PQWeight(
    codes=torch.tensor([[0, 2], [1, 1], [2, 0]], dtype=torch.uint8),
    centroids=torch.tensor([[[1, 2], [3, 4], [5, 6]], [[-1, -2], [-3, -4], [-5, -6]]], dtype=torch.int8),
    scale=torch.tensor([0.5, 0.25, 2.0]),
    shape=(3, 4),
)


def literal(values: torch.Tensor) -> str:
    return "{" + ", ".join(map(str, values.flatten().tolist())) + "}"


def layer(weight: CompressedWeight, readers: int = 1) -> ir.Model:
    """What torch.onnx gives for a linear layer with the int8 weight "layer.weight_int8"; the outputs of several calls are summed."""
    stored = [f"int8[3, 4] k = {literal(weight.int8())}"]
    body = ""
    for index in range(readers):
        stored += [f"float[3] s{index} = {literal(weight.scale)}", f"int8[3] z{index} = {{0, 0, 0}}"]
        body += f"w{index} = DequantizeLinear <axis = 0> (k, s{index}, z{index}) y{index} = Gemm <transB = 1> (x, w{index}) "
    model = parse(f"<{', '.join(stored)}> {{ {body} y = Sum ({', '.join(f'y{index}' for index in range(readers))}) }}")
    model.graph.initializers["k"].name = "layer.weight_int8"
    return model


def test_a_table_is_decoded_by_cast_add_gather_reshape() -> None:
    model = layer(TABLE)
    passes.insert_tables(model, {"layer.weight_int8": TABLE})
    assert operators(model)[:5] == ["Cast", "Add", "Gather", "Reshape", "DequantizeLinear"]
    stored = {name: array(value).tolist() for name, value in model.graph.initializers.items() if name.startswith("layer")}
    assert stored == {
        "layer.weight/codes": [[[0], [2]], [[1], [1]], [[2], [0]]],  # a column for each codebook, so one offset for each
        "layer.weight/offsets": [[0], [3]],
        "layer.weight/centroids": [[1, 2], [3, 4], [5, 6], [-1, -2], [-3, -4], [-5, -6]],
        "layer.weight/scale": [0.5, 0.25, 2.0],
        "layer.weight/zero": [0, 0, 0],
    }
    assert np.array_equal(run(model, x=X), X @ TABLE.dequantize().numpy().T)


def test_columns_that_codebooks_do_not_share_evenly_have_an_offset_each() -> None:
    table = PQWeight(torch.zeros(3, 4, dtype=torch.uint8), TABLE.centroids[..., :1].repeat(2, 1, 1)[:3], TABLE.scale, (3, 4))
    model = layer(table)
    passes.insert_tables(model, {"layer.weight_int8": table})
    assert array(model.graph.initializers["layer.weight/offsets"]).tolist() == [0, 0, 3, 6]
    assert np.array_equal(run(model, x=X), X @ table.dequantize().numpy().T)


@pytest.mark.parametrize(("size", "kind"), [(16, "uint4"), (17, "uint8"), (256, "uint8"), (257, "uint16")])
def test_codes_take_no_more_bits_than_they_need(size: int, kind: str) -> None:
    codes = torch.tensor([[0, size - 1], [1, 1], [2, 0]], dtype=torch.int32).to(codes_dtype(size))
    table = PQWeight(codes, torch.arange(2 * size).remainder(127).to(torch.int8).reshape(1, size, 2), TABLE.scale, TABLE.shape)
    model = layer(table)
    passes.insert_tables(model, {"layer.weight_int8": table})
    assert array(model.graph.initializers["layer.weight/codes"]).dtype.name == kind
    assert np.array_equal(run(model, x=X), X @ table.dequantize().numpy().T)


def test_a_residual_is_added_and_clipped() -> None:
    table = replace(TABLE, residual=replace(TABLE, centroids=(TABLE.centroids.sign() * 125)))
    model = layer(table)
    passes.insert_tables(model, {"layer.weight_int8": table})
    assert operators(model)[:13] == ["Cast", "Add", "Gather", "Reshape"] * 2 + ["Cast", "Cast", "Add", "Clip", "Cast"]
    assert table.int8().abs().max() == 127
    assert np.array_equal(run(model, x=X), X @ table.dequantize().numpy().T)


def test_a_weight_that_nothing_reads_as_int8_is_multiplied_out() -> None:
    model = layer(TABLE, readers=2)
    weights = {"layer.weight_int8": TABLE}
    passes.unpair_weights(model, weights)
    passes.insert_tables(model, weights)
    assert "DequantizeLinear" not in operators(model)
    assert array(model.graph.initializers["layer.weight/column"]).tolist() == [[0.5], [0.25], [2.0]]
    assert np.array_equal(run(model, x=X), 2 * X @ TABLE.dequantize().numpy().T)


def test_one_codebook_needs_no_offsets() -> None:
    table = PQWeight(TABLE.codes, TABLE.centroids[:1], TABLE.scale, TABLE.shape)
    model = layer(table)
    passes.insert_tables(model, {"layer.weight_int8": table})
    assert operators(model)[:4] == ["Cast", "Gather", "Reshape", "DequantizeLinear"]
    assert np.array_equal(run(model, x=X), X @ table.dequantize().numpy().T)


def test_each_reader_of_a_weight_gets_a_copy_and_a_zero_point_but_no_scale_of_its_own() -> None:
    for weight in (TABLE, IntWeight(TABLE.int8(), TABLE.scale)):
        model = layer(weight, readers=3)
        passes.insert_tables(model, {"layer.weight_int8": weight})
        readers = [node for node in model.graph if node.op_type == "DequantizeLinear"]
        assert input_names(readers, 0) == ["layer.weight/int8", "layer_2.weight/int8", "layer_3.weight/int8"]
        assert input_names(readers, 1) == ["layer.weight/scale"] * 3
        assert input_names(readers, 2) == ["layer.weight/zero", "layer.weight/zero1", "layer.weight/zero2"]
        assert np.allclose(run(model, x=X), 3 * X @ TABLE.dequantize().numpy().T)


def test_activations_become_uint8_with_the_same_numbers() -> None:
    body = """<float s = {0.5}, int8 z = {-28}, int8[3] w = {1, 2, 3}, int8 wz = {0}>
    { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, s, wz) y = Add (d, v) }"""
    model = parse(body, "float[2, 3] x) => (float[2, 3] y")
    x = np.array([[-1e3, -0.26, 0.25], [0.74, 1.0, 1e3]], np.float32)
    before = run(model, x=x)
    passes.unsigned_activations(model, {"w": IntWeight(torch.ones(3, 1, dtype=torch.int8), torch.ones(1))})
    zeros = {input_names([node], 0)[0]: array(node.inputs[2]) for node in model.graph if node.op_type != "Add"}
    assert {name: (zero.dtype.name, int(zero)) for name, zero in zeros.items()} == {
        "x": ("uint8", 100),
        "q": ("uint8", 100),
        "w": ("int8", 0),
    }
    assert np.array_equal(run(model, x=x), before)


RELU = "<float s = {{0.5}}, uint8 z = {{{zero}}}> {{ r = Relu (x) q = QuantizeLinear (r, s, z) {more} y = DequantizeLinear (q, s, z) }}"


@pytest.mark.parametrize(("zero", "absorbed"), [(0, True), (1, False)])
def test_a_relu_before_a_range_from_zero_is_absorbed(zero: int, absorbed: bool) -> None:
    model = parse(RELU.format(zero=zero, more=""), "float[2, 4] x) => (float[2, 4] y")
    before = run(model, x=X)
    passes.absorb_clamps(model)
    assert ("Relu" not in operators(model)) == absorbed
    assert np.array_equal(run(model, x=X), before)


CLIP = """<float l = {{0.0}}, float h = {{6.0}}, float s = {{{scale}}}, uint8 z = {{0}}>
{{ n = Neg (x) c = Clip (n, l, h) q = QuantizeLinear (c, s, z) y = DequantizeLinear (q, s, z) }}"""


@pytest.mark.parametrize(
    ("scale", "expected"), [(6 / 255, []), (6.0001 / 255, []), (5 / 255, []), (7 / 255, ["QuantizeLinear", "DequantizeLinear", "Clip"])]
)
def test_a_clip_is_absorbed_by_a_range_within_it_and_goes_behind_a_wider_one(scale: float, expected: list[str]) -> None:
    model = parse(CLIP.format(scale=scale), "float[2, 4] x) => (float[2, 4] y")
    before = run(model, x=X * 4)
    passes.absorb_clamps(model)
    assert operators(model) == ["Neg", *expected, "QuantizeLinear", "DequantizeLinear"]
    assert np.array_equal(run(model, x=X * 4), before)


def test_a_relu_between_two_ranges_stays() -> None:
    body = "p = QuantizeLinear (x, t, u) d = DequantizeLinear (p, t, u) r = Relu (d)"
    body += " q = QuantizeLinear (r, s, z) y = DequantizeLinear (q, s, z)"
    stored = "float t = {0.5}, uint8 u = {9}, float s = {0.25}, uint8 z = {0}"
    model = parse(f"<{stored}> {{ {body} }}", "float[2, 4] x) => (float[2, 4] y")
    passes.absorb_clamps(model)
    assert operators(model) == ["QuantizeLinear", "DequantizeLinear", "Relu", "QuantizeLinear", "DequantizeLinear"]


def test_a_relu_that_something_else_reads_stays() -> None:
    model = parse(RELU.format(zero=0, more="f = Neg (r)"), "float[2, 4] x) => (float[2, 4] y, float[2, 4] f")
    passes.absorb_clamps(model)
    assert "Relu" in operators(model)


def test_a_relu_that_is_an_output_stays() -> None:
    model = parse(RELU.format(zero=0, more=""), "float[2, 4] x) => (float[2, 4] y, float[2, 4] r")
    passes.absorb_clamps(model)
    assert "Relu" in operators(model)


@pytest.mark.parametrize(
    ("axes", "keepdims", "rank", "pooled"),
    [("2, 3", 1, 4, True), ("-1, -2", 1, 4, True), ("2, 3", 0, 4, False), ("1, 2", 1, 4, False), ("1, 2", 1, 3, False)],
)
def test_a_mean_over_height_and_width_is_pooled(axes: str, keepdims: int, rank: int, pooled: bool) -> None:
    shape = (2, 3, 4, 4)[:rank]
    result = np.zeros(shape).mean(tuple(int(axis) for axis in axes.split(",")), keepdims=bool(keepdims)).shape
    signature = f"float[{', '.join(map(str, shape))}] x) => (float[{', '.join(map(str, result))}] y"
    model = parse(f"<int64[2] axes = {{{axes}}}> {{ y = ReduceMean <keepdims = {keepdims}> (x, axes) }}", signature)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    before = run(model, x=x)
    passes.pool_globally(model)
    assert operators(model) == ["GlobalAveragePool" if pooled else "ReduceMean"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert np.allclose(run(model, x=x), before, atol=1e-6)


@pytest.mark.parametrize("form", ["gemm", "transposed", "embedding beside it"])
def test_linear_layers_become_dynamic_and_other_readers_stay(form: str) -> None:
    reads = {
        "gemm": "y = Gemm <transB = 1> (x, w, b)",
        "transposed": "t = Transpose <perm = [1, 0]> (w) m = MatMul (x, t) y = Add (m, b)",
        "embedding beside it": "g = Gather (w, i) m = Gemm <transB = 1> (x, w, b) n = ReduceSum <keepdims = 0> (g) y = Add (m, n)",
    }[form]
    weight = IntWeight(TABLE.int8(), TABLE.scale)
    stored = f"int8[3, 4] k = {literal(weight.values)}, float[3] s = {literal(weight.scale)}, int8[3] z = {{0, 0, 0}}"
    model = parse(f"<{stored}, float[3] b = {{1, 2, 3}}, int64[1] i = {{1}}> {{ w = DequantizeLinear <axis = 0> (k, s, z) {reads} }}")
    before = run(model, x=X)
    linears.quantize_linear_inputs(model)
    found = operators(model)
    assert found.count("MatMulInteger") == found.count("DynamicQuantizeLinear") == 1
    assert ("DequantizeLinear" in found) == (form == "embedding beside it")
    assert not {"Gemm", "MatMul"} & set(found)
    step = 6 / 255  # the range of X is [-3, 3]
    assert np.abs(run(model, x=X) - before).max() <= step / 2 * weight.dequantize().abs().sum(1).max() * 1.001
