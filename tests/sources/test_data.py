from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qn_deploy.errors import InputError
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program
from qn_deploy.sources.data import MOST, read_data


class Mean(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image.mean((1, 2, 3)) + 0


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(Mean(), (torch.zeros(2, 3, 8, 8),))


def test_an_npz_gives_examples_and_batches_in_a_random_order_that_stays(tmp_path: Path, program: Program) -> None:
    samples = np.arange(40, dtype=np.float32).reshape(40, 1, 1, 1) * np.ones((1, 3, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", image=samples)
    data = read_data(str(tmp_path / "data.npz"))
    examples = data.examples()
    assert isinstance(examples, dict) and np.array_equal(examples["image"].numpy(), samples[:2])
    order = [float(value) for (batch,) in data.for_program(program) for value in batch[:, 0, 0, 0]]
    assert sorted(order) == list(range(40)) and order != sorted(order)
    assert order[:7] == [float(value) for (batch,) in data.for_program(program, 7) for value in batch[:, 0, 0, 0]]


def test_a_folder_of_images_feeds_the_one_input(tmp_path: Path, program: Program) -> None:
    for index in range(3):
        Image.fromarray(np.full((8, 8, 3), 40 * index, np.uint8)).save(tmp_path / f"{index}.png")
    data = read_data(str(tmp_path), "mean=0 std=1")
    (batch,) = data.for_program(program)
    assert sorted(float(x) for x in batch[0][:, 0, 0, 0] * 255) == pytest.approx([0, 40, 80])
    (example,) = data.examples()
    assert len(example) == 2


def test_a_function_yields_batches(net: str, program: Program) -> None:
    data = read_data(f"{net}:batches")
    assert [float(batch[0].mean()) for batch in data.for_program(program)] == [0, 1, 2]
    assert len(data.for_program(program, 8)) == 2
    assert len(read_data(f"{net}:endless").batches) == MOST


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("number", "gives a int; expected a list or generator of batches"),
        ("nothing", "yields no batches"),
        ("texts", "batch 0 holds a str; expected tensors"),
        ("broken", "calling .*:broken failed with ValueError: no such layer"),
    ],
)
def test_a_function_that_yields_something_else_is_refused(net: str, function: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_data(f"{net}:{function}")


def test_data_that_does_not_fit_names_the_input(tmp_path: Path, program: Program, net: str) -> None:
    np.savez(tmp_path / "data.npz", image=np.zeros((4, 1, 8, 8), np.float32))
    with pytest.raises(InputError, match=r"data.npz: image has shape \[4, 1, 8, 8\]; the model takes \[any, 3, 8, 8\]"):
        read_data(str(tmp_path / "data.npz")).for_program(program)
    np.savez(tmp_path / "data.npz", image=np.float32(3))
    with pytest.raises(InputError, match="image holds no samples"):
        read_data(str(tmp_path / "data.npz"))
    several = np.zeros((40, 3, 8, 8), np.float32)
    several[37] = np.nan
    np.savez(tmp_path / "data.npz", image=several)
    with pytest.raises(InputError, match=r"data.npz: batch 1, input image holds NaN"):
        read_data(str(tmp_path / "data.npz")).for_program(program)
    with pytest.raises(InputError, match="--preprocess is for a folder of images"):
        read_data(str(tmp_path / "data.npz"), "resize=4")
