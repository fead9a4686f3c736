from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load, save

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporters.to_onnx.options import OnnxOptions
from qn_deploy.exporters.to_onnx.read import session_options
from qn_deploy.exporters.to_onnx.shell import SHELL, SIDECAR, constants, join, load_shell
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight
from qn_deploy.weights.table_blob import DType, Layout, pack

Programs = Callable[[str], Program]
FORMS = [("operators", Activations.STATIC), ("words", Activations.DYNAMIC), ("tied", Activations.NONE)]
forms = pytest.mark.parametrize(("name", "activations"), FORMS, ids=[f"{name}-{activations.value}" for name, activations in FORMS])


@pytest.fixture(scope="module")
def shells(programs: Programs) -> Callable[[str, Activations], Written]:
    return lambda name, activations: write_file(EXPORTER, programs(name), activations, OnnxOptions(shell=True))


@pytest.mark.slow
@forms
def test_shell_and_sidecar_are_the_dense_program_byte_for_byte(
    shells: Callable[[str, Activations], Written], name: str, activations: Activations
) -> None:
    written = shells(name, activations)
    assert list(written.companions) == [SHELL, SIDECAR]
    assert join(written.companions) == EXPORTER.dense(written.data)
    assert written.companions == shells(name, activations).companions


@pytest.mark.slow
@forms
def test_a_loaded_shell_computes_what_the_file_computes(
    shells: Callable[[str, Activations], Written], programs: Programs, tmp_path: Path, name: str, activations: Activations
) -> None:
    written = shells(name, activations)
    for file, data in written.companions.items():
        (tmp_path / file).write_bytes(data)
    session = load_shell(tmp_path, session_options())
    inputs = programs(name).golden.inputs
    feeds = {entry.name: x.numpy() for entry, x in zip(session.get_inputs(), inputs, strict=True)}
    for found, expected in zip(session.run(None, feeds), EXPORTER.run(written.data, (inputs,))[0], strict=True):
        assert torch.equal(torch.from_numpy(found), expected)


def test_every_table_is_a_blob_and_the_shell_is_small(shells: Callable[[str, Activations], Written]) -> None:
    written = shells("operators", Activations.STATIC)
    shell = onnx.load_model_from_string(written.companions[SHELL])
    sidecar = load(written.companions[SIDECAR])
    for name, weight in written.lowered.weights.items():
        if isinstance(weight, PQWeight):
            stored = f"{name.removesuffix('_int8')}/int8"
            assert sidecar[stored].tobytes() == pack(weight, Layout.OIS, DType.INT8)
    assert all(len(entry.raw_data) <= 1024 for entry in shell.graph.initializer)
    assert {entry.name for entry in shell.graph.initializer if entry.external_data} == set(sidecar)


def test_a_sidecar_of_literal_bytes() -> None:
    table = PQWeight(
        torch.tensor([[0], [1]], dtype=torch.uint8), torch.tensor([[[1, 2], [3, -4]]], dtype=torch.int8), torch.ones(2), (2, 2)
    )
    blob = pack(table, Layout.OIS, DType.INT8)
    header = (
        b'{"__metadata__":{"shapes":"{\\"w/int8\\": [2, 2]}"},'
        b'"b":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"w/int8":{"dtype":"U8","shape":[%d],"data_offsets":[1,%d]}}'
        % (len(blob), 1 + len(blob))
    )
    found = dict(constants(len(header).to_bytes(8, "little") + header + b"\x07" + blob))
    assert found["b"].tolist() == [7]
    assert found["w/int8"].tolist() == [[1, 2], [3, -4]]
    assert found["w/int8"].dtype == np.int8


def changed(sidecar: bytes, change: Callable[[dict[str, np.ndarray], dict[str, list[int]]], None]) -> bytes:
    tensors = load(sidecar)
    header = json.loads(sidecar[8 : 8 + int.from_bytes(sidecar[:8], "little")])
    shapes = json.loads(header["__metadata__"]["shapes"])
    change(tensors, shapes)
    return save(tensors, {"shapes": json.dumps(shapes)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda tensors, shapes: tensors.pop("linear.weight/int8"), "does not hold linear.weight/int8 of shape"),
        (lambda tensors, shapes: shapes.update({"linear.weight/int8": [32, 10]}), "does not hold linear.weight/int8 of shape"),
        (lambda tensors, shapes: shapes.update({"linear.weight/int8": [7, 7]}), "linear.weight/int8: cannot reshape"),
        (lambda tensors, shapes: tensors.update({"linear.weight/int8": np.zeros(9, np.uint8)}), "linear.weight/int8: no table blob"),
    ],
)
def test_a_damaged_sidecar_is_named(shells: Callable[[str, Activations], Written], damage: Callable[..., None], said: str) -> None:
    companions = dict(shells("operators", Activations.STATIC).companions)
    companions[SIDECAR] = changed(companions[SIDECAR], damage)
    with pytest.raises(InputError, match=said):
        join(companions)


def test_other_bytes_are_no_sidecar_and_no_shell(shells: Callable[[str, Activations], Written], tmp_path: Path) -> None:
    companions = shells("operators", Activations.STATIC).companions
    for sidecar in (b"", b"\xff" * 20, companions[SIDECAR][:200], save({"x": np.zeros(1)})):
        with pytest.raises(InputError, match=r"model\.shell\.safetensors is damaged"):
            join({**companions, SIDECAR: sidecar})
    with pytest.raises(InputError, match="is no ONNX model"):
        join({**companions, SHELL: b"\xff\xff"})
    with pytest.raises(InputError, match=r"model\.shell\.safetensors is missing"):
        join({SHELL: companions[SHELL]})
    with pytest.raises(InputError, match=r"model\.shell\.onnx: No such file or directory; a shell, its sidecar and room"):
        load_shell(tmp_path)
