from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from qn_deploy.errors import ExportError
from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.packing import code_rows

Programs = Callable[[str], Program]
Write = Callable[[str, str, Activations], Written]


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


@pytest.fixture
def data(write: Write) -> bytes:
    return write("residual", "onnx", Activations.STATIC).data


def changed(data: bytes, name: str, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    model = onnx.load_model_from_string(data)
    (entry,) = [entry for entry in model.graph.initializer if entry.name == name]
    entry.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(entry)), name))
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("name", "activations"), [("residual", Activations.STATIC), ("words", Activations.DYNAMIC), ("tied", Activations.NONE)]
)
def test_the_hashes_are_those_of_the_tables_int8_values(programs: Programs, write: Write, name: str, activations: Activations) -> None:
    found = EXPORTER.weight_hashes(write(name, "onnx", activations).data)
    for weight in programs(name).weights.values():
        looked_up = isinstance(weight, PQWeight) and {sha256(code_rows(weight)), sha256(weight.centroids)} <= found
        assert sha256(weight.int8()) in found or looked_up


@pytest.mark.parametrize("part", ["codes", "centroids"])
def test_one_changed_byte_of_a_table_is_noticed(programs: Programs, data: bytes, part: str) -> None:
    def flip(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] ^= 1
        return array

    weight = programs("residual").weights["first.weight"]
    assert sha256(weight.int8()) in EXPORTER.weight_hashes(data)
    assert sha256(weight.int8()) not in EXPORTER.weight_hashes(changed(data, f"first.weight/{part}", flip))


def test_swapped_codebooks_are_noticed(programs: Programs, data: bytes) -> None:
    weight = programs("residual").weights["second.weight"]
    swapped = changed(data, "second.weight/offsets", lambda offsets: offsets[::-1].copy())
    assert sha256(weight.int8()) not in EXPORTER.weight_hashes(swapped)


def test_dense_holds_plain_int8_weights_and_no_table(programs: Programs, data: bytes) -> None:
    model = onnx.load_model_from_string(EXPORTER.dense(data))
    stored = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in model.graph.initializer}
    for name, weight in programs("residual").weights.items():
        assert torch.equal(stored[f"{name}/int8"], weight.int8())
    assert not any(name.endswith(("/codes", "/centroids", "/offsets")) for name in stored)
    assert not {"Cast", "Gather"} & {node.op_type for node in model.graph.node}
    onnx.checker.check_model(model, full_check=True)


def test_codes_that_nothing_decodes_are_named(data: bytes) -> None:
    model = onnx.load_model_from_string(data)
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] == "first.weight/codes":
            node.op_type = "Neg"
    with pytest.raises(ExportError, match=r"comes from Neg, which decodes no table; the file was changed"):
        EXPORTER.weight_hashes(model.SerializeToString())


def test_a_run_takes_batches_and_gives_the_outputs_in_order(programs: Programs, write: Write) -> None:
    written = write("operators", "onnx", Activations.STATIC)
    x = programs("operators").golden.inputs
    first, second = EXPORTER.run(written.data, (x, x))
    assert [output.shape for output in first] == [output.shape for output in programs("operators").golden.outputs]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
