from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from qn_deploy import compress, load, save
from qn_deploy.errors import InputError
from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.program.lower import Activations
from qn_deploy.program.manifest import read_manifest
from qn_deploy.program.program import Batch
from qn_deploy.recipe import Int8, Recipe, Rule
from qn_deploy.verify.ladder import Report
from qn_deploy.verify.layers import check_layers, compare_layers, first_difference


@pytest.mark.parametrize("layer", [None, "stem", "body", "head"])
def test_the_layer_that_is_wrong_is_named_with_its_error(model: Any, layer: str | None) -> None:
    def run(data: bytes, inputs: Batch) -> Batch:
        proto = onnx.load_model_from_string(data)
        for entry in proto.graph.initializer:
            if layer is not None and entry.name.startswith(f"{layer}.bias"):  # int32: 2,000 of it are a few steps
                entry.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry) + 2_000, entry.name))
        return EXPORTER.run(proto.SerializeToString(), (inputs,))[0]

    program = load(model.path)
    layers = compare_layers(program, Activations.STATIC, EXPORTER, run)
    assert [found.name for found in layers] == ["stem", "body", "adaptive_avg_pool2d", "head"]
    first = first_difference(layers)
    if layer is None:
        assert first is None
    else:
        assert first is not None
        assert first.name == layer
        assert first.agreement.steps is not None
        assert first.agreement.steps > 0.5


def test_of_a_program_that_is_not_static_each_layer_is_close_to_the_simulation(model: Any) -> None:
    program = load(model.path)
    layers = compare_layers(program, Activations.NONE, EXPORTER, lambda data, inputs: EXPORTER.run(data, (inputs,))[0])
    assert [found.name for found in layers] == ["stem", "body", "adaptive_avg_pool2d", "head"]
    assert min(found.agreement.sqnr_db for found in layers) > 80


def test_another_model_is_refused(model: Any, build: Any, tmp_path: Any) -> None:
    other = compress.compress(torch.nn.Sequential(torch.nn.Linear(8, 8)), Recipe((Rule(Int8()),)), (torch.randn(1, 8),))
    save(other, tmp_path / "other.pt", example_inputs=(torch.randn(1, 8),))
    with pytest.raises(InputError, match=r"other\.pt has other weights than .*; give the model\.pt that was exported into it"):
        check_layers(Report(str(build.folder), read_manifest(build.folder), ()), tmp_path / "other.pt")
