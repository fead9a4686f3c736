from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from qn_deploy.errors import InputError
from qn_deploy.sources.checkpoint import load_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.second.weight = self.first.weight


def trained() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return Net().state_dict()


def prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


@pytest.mark.parametrize(
    "write",
    [
        lambda path, state: torch.save(state, path),
        lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
        lambda path, state: torch.save({"epoch": 3, "model": prefixed(state), "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, path),
        lambda path, state: safetensors.torch.save_file({k: v for k, v in state.items() if k != "second.weight"}, path),
    ],
    ids=["torch", "old torch", "nested and prefixed", "safetensors without tied copies"],
)
def test_weights_come_out_of_any_checkpoint(tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], Any]) -> None:
    state, model = trained(), Net()
    write(tmp_path / "weights", state)
    load_weights(model, tmp_path / "weights")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.first.weight is model.second.weight


def one_strange(value: Tensor) -> Callable[[Path], Any]:
    return lambda path: torch.save({**trained(), "first.weight": value, "second.weight": value}, path)


def damaged(path: Path) -> None:
    """One bit of a value, which torch.load does not see."""
    torch.save(trained(), path)
    data = bytearray(path.read_bytes())
    data[data.index(trained()["first.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(data)


def deflated(path: Path) -> None:
    torch.save(trained(), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def folder(path: Path) -> None:
    """One bit of the directory makes a member a folder, whose tensor torch.load leaves as its memory happens to be."""
    torch.save(trained(), path)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02", data.rindex(b"data/0") - 60)
    assert bytes(data[entry + 46 :]).startswith(b"weights/data/0")
    data[entry + 38] |= 0x10
    path.write_bytes(data)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("run_by_a_checkpoint",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"weight": Evil()}, path), "holds more than tensors, which could run code when it is opened"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no weights: expected a map from names to tensors"),
        (lambda path: path.write_bytes(b"hello"), "is no checkpoint of torch.save and no safetensors file"),
        (lambda path: path.write_bytes((3).to_bytes(8, "little") + b"{x}"), "is a damaged safetensors file|is no checkpoint"),
        (lambda path: None, "cannot read .*: No such file"),
        (
            lambda path: torch.save({"first.weight": torch.zeros(4, 4)}, path),
            "does not fit Net: it lacks first.bias, second.bias, norm.weight and 4 more",
        ),
        (lambda path: torch.save({**trained(), "third.weight": torch.zeros(1)}, path), "does not fit Net: the module has no third.weight"),
        (lambda path: torch.save({**trained(), "first.bias": torch.zeros(5)}, path), r"first.bias has shape \[5\]; Net has \[4\]"),
        (damaged, "doesn't match the directory of the zip: the file is damaged"),
        (deflated, "compressed or encrypted"),
        (folder, "marked as a folder: the file is damaged"),
        (
            lambda path: torch.save({**trained(), "a\nb\x1b[2J": torch.zeros(1)}, path),
            r"does not fit Net: the module has no a\\nb\\x1b\[2J",
        ),
        (
            one_strange(torch.empty(4, 4, device="meta")),
            "first.weight is a meta tensor, a shape without values; Net has a dense float32 tensor",
        ),
        (one_strange(torch.eye(4).to_sparse()), "first.weight is a tensor of float32 and the layout sparse_coo"),
        (one_strange(torch.ones(4, 4, dtype=torch.complex64)), "first.weight is a tensor of complex64 and the layout strided"),
    ],
    ids=[
        *("code", "no tensors", "text", "damaged", "missing", "lacking", "strange", "shape"),
        *("one bit of a value", "deflated", "folder", "control characters", "meta", "sparse", "complex"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write(tmp_path / "weights.pt")
    with pytest.raises(InputError, match=message):
        load_weights(model, tmp_path / "weights.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / "run_by_a_checkpoint").exists()
