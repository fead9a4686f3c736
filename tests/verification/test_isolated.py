from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch

from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.verification.isolated import Run, RuntimeFailure, run_isolated


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files; nothing may stay there."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_third_exporter_comes_through_the_same_door(third_exporter: str) -> None:
    assert sorted(find_exporters()) == ["executorch", "onnx", third_exporter]


@pytest.mark.slow
def test_a_failure_is_a_result_and_the_other_runs_still_happen(third_exporter: str, temporary: Path) -> None:
    inputs = (torch.zeros(2, 3), torch.arange(4)[::2])
    words = ("plus one", "raise", "segfault", "raise nothing", "flags", "talk", "views", "exit")
    results = run_isolated(third_exporter, tuple(Run(word.encode(), optimized=word != "flags") for word in words), inputs)
    failures = {word: str(result) for word, result in zip(words, results, strict=True) if isinstance(result, RuntimeFailure)}
    assert failures == {
        "raise": "ValueError: no kernel for",  # a line of the report is one line
        "segfault": "the runtime crashed with SIGSEGV",
        "raise nothing": "KeyError: no message",
        "exit": "the runtime ended with exit code 1: the licence has run out",
    }
    outputs = {word: result for word, result in zip(words, results, strict=True) if not isinstance(result, RuntimeFailure)}
    assert [tensor.tolist() for tensor in outputs["plus one"]] == [[[1.0] * 3] * 2, [1, 3]]
    assert [tensor.tolist() for tensor in outputs["talk"]] == [[[1.0] * 3] * 2, [1, 3]]
    assert [tensor.tolist() for tensor in outputs["views"]] == [[[0.0] * 3] * 2, [[0.0] * 3] * 2, [0.0, 0.0]]  # one memory, three outputs
    optimized, process, empty = outputs["flags"]
    assert optimized.item() is False
    assert process.item() != os.getpid()
    assert empty.shape == (0, 3)
    assert not list(temporary.iterdir())


def test_a_runtime_that_hangs_is_ended(third_exporter: str, temporary: Path) -> None:
    (hung,) = run_isolated(third_exporter, (Run(b"sleep"),), (torch.zeros(1),), timeout_s=1)
    assert isinstance(hung, RuntimeFailure)
    assert str(hung) == "the runtime did not end within 1 s"
    assert not list(temporary.iterdir())


def test_no_runs_need_no_process(third_exporter: str) -> None:
    assert run_isolated(third_exporter, (), (torch.zeros(1),), timeout_s=0) == ()
