from __future__ import annotations

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.rules import (
    ALL,
    ONNXRUNTIME,
    ONNXRUNTIME_ARM,
    UNSIGNED,
    XNNPACK,
    Grid,
    add_in_21_bits,
    add_in_22_bits,
    add_in_float,
    multiply_fused,
    multiply_in_float,
    multiply_to_even,
    multiply_upwards,
)

SCALES, ZEROS = st.floats(2**-8, 1, width=32), st.integers(0, 255)
STEPS = torch.arange(256.0)


def grid(scale: float, zero: int) -> Grid:
    return Grid(torch.tensor(scale), zero)


def steps(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int8)


def test_the_rules_of_addition_in_literal_steps() -> None:
    grids = grid(0.5, 3), grid(0.25, -1), grid(1.0, 0)
    for rules in ALL:  # 0 + 0, 0.5 + 0.5, 1 + 0.5, 62 + 32, -65.5 - 31.75; 1.5 -> 2, in every way
        assert rules.add(steps(3, 4, 5, 127, -128), steps(-1, 1, 1, 127, -128), *grids).tolist() == [0, 1, 2, 94, -97]
    ties = steps(4, 2), steps(-1, -1)  # 0.5 + 0, -0.5 + 0
    assert add_in_float(*ties, *grids).tolist() == [0, 0]  # to even
    assert add_in_21_bits(*ties, *grids).tolist() == [1, 0]  # up
    assert add_in_22_bits(*ties, *grids).tolist() == [1, -1]  # away from zero


def test_the_multipliers_of_a_sum_have_21_bits_or_22() -> None:
    ratio = 10485.26 / 2**21  # 100 + 100 * ratio is short of 100.5, a tie: with 22 bits still, with 21 rounded past it
    grids = grid(1.0, 0), grid(ratio, 0), grid(1.0, 0)
    assert [rules.add(steps(100), steps(100), *grids).item() for rules in (ONNXRUNTIME, ONNXRUNTIME_ARM, XNNPACK)] == [100, 100, 101]


def test_the_rules_of_multiplication_in_literal_steps() -> None:
    grids = grid(0.5, 3), grid(0.25, -1), grid(1.0, 1)
    for rules in ALL:  # 0 * 0, 0.5 * 0.5, 6 * 3, -65.5 * 32, -65.5 * -31.75
        assert rules.multiply(steps(3, 4, 15, -128, -128), steps(-1, 1, 11, 127, -128), *grids).tolist() == [1, 1, 19, -2095, 2081]
    ties = steps(4, 2, 6), steps(3, 3, 3)  # 0.5, -0.5 and 1.5, then 1 is added
    assert multiply_in_float(*ties, *grids).tolist() == [2, 0, 2]  # 129.5, 128.5 and 130.5 to even
    assert multiply_fused(*ties, *grids).tolist() == [2, 0, 2]
    assert multiply_to_even(*ties, *grids).tolist() == [1, 1, 3]  # 0.5, -0.5 and 1.5 to even
    assert multiply_upwards(*ties, *grids).tolist() == [2, 1, 3]


@pytest.mark.parametrize("operator", ["Add", "Mul"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(scale_a=SCALES, zero_a=ZEROS, scale_b=SCALES, zero_b=ZEROS, width=st.floats(0.5, 3, width=32), zero=ZEROS)
def test_every_pair_of_steps_in_onnxruntime(
    operator: str, scale_a: float, zero_a: int, scale_b: float, zero_b: int, width: float, zero: int
) -> None:
    scale = width * (max(scale_a, scale_b) if operator == "Add" else 128 * scale_a * scale_b)
    names = {"sa": scale_a, "sb": scale_b, "s": scale, "one": 1.0}, {"za": zero_a, "zb": zero_b, "z": zero, "none": 0}
    constants = ", ".join(
        [f"float {name} = {{{value}}}" for name, value in names[0].items()]
        + [f"uint8 {name} = {{{value}}}" for name, value in names[1].items()]
    )
    body = f"""p = QuantizeLinear (a, one, none) q = QuantizeLinear (b, one, none)
        y = com.microsoft.QLinear{operator} (p, sa, za, q, sb, zb, s, z) r = Cast <to = 1> (y)"""
    domains = 'opset_import: ["": 18, "com.microsoft": 1]'
    model = onnx.parser.parse_model(
        f"<ir_version: 9, {domains}> m (float[256, 256] a, float[256, 256] b) => (float[256, 256] r) <{constants}> {{ {body} }}"
    )
    a, b = STEPS[:, None].expand(256, 256).contiguous(), STEPS[None, :].expand(256, 256).contiguous()
    ((found,),) = find_exporters()["onnx"].run(model.SerializeToString(), ((a, b),))
    grids = grid(scale_a, zero_a - UNSIGNED), grid(scale_b, zero_b - UNSIGNED), grid(scale, zero - UNSIGNED)
    rule = ONNXRUNTIME.add if operator == "Add" else ONNXRUNTIME.multiply
    expected = rule((a - UNSIGNED).to(torch.int8), (b - UNSIGNED).to(torch.int8), *grids).clamp(-128, 127) + UNSIGNED
    assert torch.equal(found.long(), expected)
