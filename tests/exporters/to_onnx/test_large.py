"""External data, with a limit of 500 bytes in place of 1.9 GB."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import onnxruntime
import pytest
import torch

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_onnx import EXPORTER, large, read
from qn_deploy.exporters.to_onnx.options import OnnxOptions
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.export import export, write_file
from qn_deploy.exporting.exporter import TooLargeError, Written
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Program
from qn_deploy.verification.ladder import verify

Programs = Callable[[str], Program]
Write = Callable[[str, str, Activations], Written]


@pytest.fixture
def whole(write: Write) -> Written:
    return write("words", "onnx", Activations.DYNAMIC)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch, whole: Written) -> None:  # `write` keeps what it wrote: before the limit falls
    monkeypatch.setattr(large, "LIMIT", 500)
    monkeypatch.setattr(large, "_SMALL", 100)


def test_under_the_limit_a_program_is_one_file(whole: Written) -> None:
    assert whole.parts == {}


def test_the_data_file_is_named_after_its_hash_and_computes_the_same(programs: Programs, whole: Written, small_files: None) -> None:
    written = write_file(EXPORTER, programs("words"), Activations.DYNAMIC)
    ((name, data),) = written.parts.items()
    assert name == f"model.{sha256(data).hexdigest()[:16]}.data"
    assert len(written.data) < len(whole.data)
    inputs = programs("words").golden.inputs
    (found,), (expected,) = EXPORTER.run(written.data, (inputs,), parts=written.parts)[0], EXPORTER.run(whole.data, (inputs,))[0]
    assert torch.equal(found, expected)
    assert EXPORTER.weight_hashes(written.data, written.parts) == EXPORTER.weight_hashes(whole.data)
    assert EXPORTER.dense(written.data, written.parts) == EXPORTER.dense(whole.data)


def test_a_shell_is_made_of_a_program_in_two_files(programs: Programs, small_files: None) -> None:
    written = write_file(EXPORTER, programs("words"), Activations.DYNAMIC, OnnxOptions(shell=True))
    assert written.parts
    assert EXPORTER.rebuild(written.companions) == EXPORTER.dense(written.data, written.parts)


@pytest.mark.slow
def test_a_folder_with_external_data_loads_by_its_path_and_verifies(
    programs: Programs, tmp_path: Path, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = export(programs("words"), tmp_path, ExportConfig("x86", "dynamic", only=("onnx",))).manifest
    (name,) = manifest.files["model.onnx"].parts
    onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert verify(tmp_path).passed
    monkeypatch.setattr(read, "LIMIT", 500)
    (line,) = [check for check in verify(tmp_path).checks if check.limit == "not compared"]
    assert line.found == "the dense weights take 5,956 bytes, more than one .onnx file can hold"
    (tmp_path / name).write_bytes(b"other")
    with pytest.raises(InputError, match=f"{name} is not the file that was exported"):
        verify(tmp_path)


def test_missing_and_short_data_and_dense_weights_that_fit_no_file(
    programs: Programs, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_file(EXPORTER, programs("words"), Activations.DYNAMIC)
    ((name, data),) = written.parts.items()
    for parts in ({}, {name: data[:-1]}):
        with pytest.raises(InputError, match=f"lies in {name}, which is missing or too short; export the model again"):
            EXPORTER.dense(written.data, parts)
    monkeypatch.setattr(read, "LIMIT", 500)
    with pytest.raises(TooLargeError, match=r"bytes, more than one \.onnx file can hold"):
        EXPORTER.dense(written.data, written.parts)
