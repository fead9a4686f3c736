"""Mutations and forgeries of checkpoints and of calibration data: refused in one line, or read as they were; a forged one as it says."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from qn_deploy.errors import InputError
from qn_deploy.program.batches import batches_of, read_arrays
from qn_deploy.program.program import Batch, Program
from qn_deploy.sources.checkpoint import load_weights
from tests.faults.trials import REFUSED, SAME, attack, count, forged_zip, mutated
from tests.program.archives import saved, words_program

pytestmark = [pytest.mark.slow, pytest.mark.faults]
OTHER = "accepted: other numbers of the right form, and no hash tells"


class Net(nn.Module):
    """Parameters, tied ones and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.second.weight = self.first.weight


def state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return Net().state_dict()


def untied() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state().items() if name != "second.weight"}


def old(data: dict[str, Any]) -> bytes:
    return saved(lambda buffer: torch.save(data, buffer, _use_new_zipfile_serialization=False))


CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    ".safetensors": lambda: safetensors.torch.save(untied()),
    ".pt": lambda: saved(lambda buffer: torch.save({"epoch": 3, "model": state()}, buffer)),
    ".pt of the old kind": lambda: old({"epoch": 3, "model": state()}),
}
HASHED = (".pt", ".npz")  # a zip has a checksum of each member


def loaded(path: Path, data: bytes, same: tuple[str, ...]) -> Callable[[], str]:
    """A case: what becomes of a checkpoint."""

    def case() -> str:
        path.write_bytes(data)
        model = Net()
        try:
            load_weights(model, path)
        except InputError as error:
            assert "\n" not in str(error)
            return REFUSED
        expected = state()
        equal = all(value.dtype == expected[name].dtype and same_bits(value, expected[name]) for name, value in model.state_dict().items())
        return SAME if equal else same[-1]

    return case


def same_bits(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and found.numpy().tobytes() == expected.numpy().tobytes()


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_mutations_of_a_checkpoint(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, data = random.Random(5), CHECKPOINTS[kind]()
    words = ("silently different",) if kind in HASHED else (OTHER,)
    cases = [loaded(tmp_path / "weights", mutated(data, draw), words) for _ in range(count(10_000, 300))]
    assert attack(capsys, f"{kind}, mutated", cases)[REFUSED]


def test_forgeries_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, data = random.Random(6), CHECKPOINTS[".pt"]()
    cases = [loaded(tmp_path / "weights", forged_zip(data, draw), (OTHER,)) for _ in range(count(10_000, 300))]
    assert attack(capsys, ".pt, forged with right CRCs", cases)[REFUSED]


@pytest.fixture(scope="module")
def program() -> Program:
    return words_program()


def arrays() -> dict[str, np.ndarray]:
    return {"tokens": np.arange(24).reshape(8, 3) % 40}


def calibration(path: Path, data: bytes, program: Program, expected: Batch | None) -> Callable[[], str]:
    """A case: what becomes of an .npz."""

    def case() -> str:
        path.write_bytes(data)
        try:
            (found,) = (batch[0] for batch in batches_of(path, read_arrays(path), program)[:1])
        except InputError as error:
            assert "\n" not in str(error)
            return REFUSED
        if expected is None:
            return OTHER
        return SAME if same_bits(found, expected[0]) else "silently different"

    return case


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("forged", [False, True], ids=["mutated", "forged with right CRCs"])
def test_calibration_data(
    program: Program, tmp_path: Path, capsys: pytest.CaptureFixture[str], save: Callable[..., None], forged: bool
) -> None:
    draw, buffer = random.Random(7), io.BytesIO()
    save(buffer, **arrays())
    data = buffer.getvalue()
    (tmp_path / "data.npz").write_bytes(data)
    expected = batches_of("data.npz", read_arrays(tmp_path / "data.npz"), program)[0]
    changed = [forged_zip(data, draw) if forged else mutated(data, draw) for _ in range(count(5_000, 150))]
    cases = [calibration(tmp_path / "data.npz", each, program, None if forged else expected) for each in changed]
    assert attack(capsys, f".npz of {save.__name__}, {'forged with right CRCs' if forged else 'mutated'}", cases)[REFUSED]
