from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qn_deploy.compression.resume import RunFile, fingerprint
from qn_deploy.errors import InputError

WHOLE = torch.arange(6.0).reshape(2, 3)
TENSORS = {
    "float": WHOLE,
    "column": WHOLE[:, 1],
    "same memory": WHOLE,
    "codes": torch.tensor([[0, 65535]], dtype=torch.uint16),
    "step": torch.tensor(7.0),
    "none": torch.zeros(0, 3),
}


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "run", "mine")
    assert file.load() is None
    file.save({"float": torch.zeros(1)}, {"step": 1})
    file.save(TENSORS, {"step": 2, "left": {"a.weight": "float: \u00fc"}})
    loaded = file.load()
    assert loaded is not None
    tensors, position = loaded
    assert position == {"step": 2, "left": {"a.weight": "float: \u00fc"}}
    assert tensors.keys() == TENSORS.keys()
    assert all(tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    RunFile(tmp_path / "run", "mine").save(TENSORS, {})
    with pytest.raises(InputError, match=r"run is the state of another run: .* give another file, or delete this one to start anew"):
        RunFile(tmp_path / "run", "yours").load()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = RunFile(tmp_path / "run", "mine")
    file.save(TENSORS | {"more": torch.zeros(64)}, {"step": 1})
    data = file.path.read_bytes()
    for where in range(len(data)):  # the order of the metadata differs from one process to the next
        file.path.write_bytes(data[:where] + bytes([data[where] ^ 0x40]) + data[where + 1 :])
        with pytest.raises(InputError, match=r"run is "):
            file.load()
    file.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"run is no state of a run, or cut short"):
        file.load()


def test_other_tensor_files_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match="is a safetensors file, but not the state of a run"):
        RunFile(tmp_path / "weights.safetensors", "mine").load()
    with pytest.raises(InputError, match="is no state of a run"):
        RunFile(tmp_path, "mine").load()


def test_a_folder_that_is_missing_is_told_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run can't keep a run's state: there is no folder .*nowhere; make it"):
        RunFile(tmp_path / "nowhere" / "run", "mine").load()


def test_a_fingerprint_depends_on_every_part() -> None:
    a = torch.tensor([1.0, 2.0])
    parts = [
        ("text", {"a": a}),
        ("text ", {"a": a}),
        ("text", {"b": a}),
        ("text", {"a": a.double()}),
        ("text", {"a": a[None]}),
        ("text", {"a": a.flip(0)}),
        ({"a": a}, "text"),
    ]
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert fingerprint({"a": a, "b": a}) == fingerprint({"b": a.clone(), "a": a})
