from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qn_deploy import calibrate, capture, compress, load, save
from qn_deploy.errors import InputError
from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.manifest import read_manifest
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Batch
from qn_deploy.recipe import Int8, Recipe, Rule
from qn_deploy.verification.layers import LayerAgreement, check_layers, compare_layers, judge_layers
from qn_deploy.verification.report import Report


@pytest.mark.slow
@pytest.mark.parametrize("layer", [None, "stem", "body", "head"])
def test_the_layer_that_is_wrong_is_named_with_its_error(model: Any, layer: str | None) -> None:
    def run(data: bytes, inputs: Batch) -> Batch:
        proto = onnx.load_model_from_string(data)
        for entry in proto.graph.initializer:
            if layer is not None and entry.name.startswith(f"{layer}.bias"):  # int32: 2,000 of it are a few steps
                entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) + 2_000, entry.name))
        return EXPORTER.run(proto.SerializeToString(), (inputs,))[0]

    layers = compare_layers(load(model.path), Activations.STATIC, EXPORTER, run)
    assert [found.name for found in layers] == ["stem", "body", "adaptive_avg_pool2d", "head"]
    assert all(found.exact for found in layers)
    # Those behind it go on with the wrong values, and are right themselves.
    assert [found.name for found in layers if not found.agreement.identical] == [layer] * (layer is not None)
    check = judge_layers("all", layers)
    if layer is None:
        assert (check.found, check.limit, check.passed) == ("4 of 4 exact layers bit-identical", "bit-identical", True)
    else:
        assert re.fullmatch(rf"3 of 4 exact layers bit-identical; {layer}: \d+ steps?, .*% of values, SQNR .* dB", check.found)
        assert (check.limit, check.passed) == ("bit-identical", False)


def compared(middle: nn.Module) -> list[LayerAgreement]:
    """The layers of a static program, a linear layer before `middle` and one behind, on onnxruntime."""
    inputs = (torch.randn(4, 8),)
    net = nn.Sequential(nn.Linear(8, 16), middle, nn.Linear(16, 8))
    program = calibrate(compress(capture(net, inputs), Recipe((Rule(Int8()),))), [inputs])
    return compare_layers(program, Activations.STATIC, EXPORTER, lambda data, x: EXPORTER.run(data, (x,))[0])


def test_an_operator_without_an_exact_rule_is_judged_by_itself() -> None:
    layers = compared(nn.Softmax(1))
    assert [(found.name, found.exact) for found in layers] == [("0", True), ("softmax", False), ("2", True)]
    check = judge_layers("all", layers)
    assert check.passed
    assert check.found.startswith("2 of 2 exact layers bit-identical; softmax: ")
    assert check.limit == "bit-identical, others SQNR >= 60 dB"


def test_each_layer_says_what_it_is() -> None:
    said = [str(found) for found in compared(nn.Softmax(1))]
    assert said == ["linear, weight int8, int8 by an exact rule", "softmax, float", "linear, weight int8, int8 by an exact rule"]


@pytest.mark.parametrize("inexact", ["linear", "relu"])
def test_a_layer_and_the_clamp_that_joins_it_are_one(inexact: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qn_deploy.verification.layers.inexact_operators", lambda exported: [inexact])
    assert [(found.name, found.exact) for found in compared(nn.ReLU())] == [("0", False), ("2", True)]


@pytest.mark.slow
def test_of_a_program_that_is_not_static_each_layer_is_close_to_the_simulation(model: Any) -> None:
    program = load(model.path)
    layers = compare_layers(program, Activations.NONE, EXPORTER, lambda data, inputs: EXPORTER.run(data, (inputs,))[0])
    assert [found.name for found in layers] == ["stem", "body", "adaptive_avg_pool2d", "head"]
    assert not any(found.exact for found in layers)
    check = judge_layers("all", layers)
    assert check.found.startswith("worst of 4: ")
    assert (check.limit, check.passed) == ("SQNR >= 60 dB", True)
    assert min(found.agreement.sqnr_db for found in layers) > 100


def test_another_model_is_refused(model: Any, build: Any, tmp_path: Path) -> None:
    save(compress(capture(nn.Sequential(nn.Linear(8, 8)), (torch.randn(1, 8),)), Recipe((Rule(Int8()),))), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt has other weights than .*; give the model\.pt that was exported into it"):
        check_layers(Report(str(build.folder), read_manifest(build.folder), ()), tmp_path / "other.pt")
