from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qn_deploy.errors import InputError
from qn_deploy.program.calibration import load_calibration
from qn_deploy.program.program import Program

MakeProgram = Callable[..., Program]


class Two(nn.Module):
    """Takes an image [N, 3, 4, 4] and a gain [N, 3]."""

    def forward(self, image: Tensor, gain: Tensor) -> Tensor:
        return image.mean((2, 3)) * gain


INPUTS = (torch.randn(4, 3, 4, 4), torch.rand(4, 3))


@pytest.fixture(scope="module")
def fixed(make_program: MakeProgram) -> Program:
    return make_program(Two(), INPUTS, {}, ())


@pytest.fixture(scope="module")
def dynamic(make_program: MakeProgram) -> Program:
    batch = Dim("batch", min=1, max=64)
    return make_program(Two(), INPUTS, {}, (), ({0: batch}, {0: batch}))


def samples(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {"image": draw.standard_normal((count, 3, 4, 4), np.float32), "gain": draw.random((count, 3), np.float32)}


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (32, [32]), (70, [32, 32, 6])])
def test_a_dynamic_batch_takes_every_sample(dynamic: Program, tmp_path: Path, count: int, sizes: list[int]) -> None:
    arrays = samples(count)
    batches = load_calibration(save(tmp_path / "data.npz", **arrays), dynamic)
    assert [len(image) for image, _ in batches] == sizes
    assert np.array_equal(torch.cat([image for image, _ in batches]).numpy(), arrays["image"])
    assert np.array_equal(torch.cat([gain for _, gain in batches]).numpy(), arrays["gain"])


def test_a_fixed_batch_takes_whole_batches(fixed: Program, tmp_path: Path) -> None:
    batches = load_calibration(save(tmp_path / "data.npz", **samples(11)), fixed)
    assert [tuple(len(tensor) for tensor in batch) for batch in batches] == [(4, 4), (4, 4)]


def test_the_order_of_the_arrays_in_the_file_does_not_matter(dynamic: Program, tmp_path: Path) -> None:
    arrays = samples(3)
    ((image, gain),) = load_calibration(save(tmp_path / "data.npz", gain=arrays["gain"], image=arrays["image"]), dynamic)
    assert (image.ndim, gain.ndim) == (4, 2)


def with_array(name: str, array: Any) -> Callable[[Path], object]:
    return lambda path: save(path, **{**samples(8), name: array})


def nan() -> np.ndarray:
    gain = samples(8)["gain"]
    gain[5, 1] = np.nan
    return gain


def damaged(path: Path) -> None:
    save(path, **samples(8))
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)


def damaged_and_compressed(path: Path) -> None:
    arrays: dict[str, Any] = samples(8)
    np.savez_compressed(path, **arrays)
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)


def truncated(path: Path) -> None:
    save(path, **samples(8))
    path.write_bytes(path.read_bytes()[:300])


def single(path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, samples(8)["image"])
    path.write_bytes(buffer.getvalue())


def not_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image", "hello")
        archive.writestr("gain", "hello")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist; give the .npz with calibration data"),
    "folder": (lambda path: path.mkdir(), "can't be read as an .npz of plain arrays"),
    "empty file": (lambda path: path.write_bytes(b""), "can't be read as an .npz of plain arrays"),
    "text": (lambda path: path.write_text("image, gain"), "can't be read as an .npz of plain arrays"),
    "truncated": (truncated, "can't be read as an .npz of plain arrays"),
    "damaged": (damaged, "can't be read as an .npz of plain arrays"),
    "damaged and compressed": (damaged_and_compressed, "can't be read as an .npz of plain arrays"),
    "single array": (single, "is a single array; calibration data is an .npz with one array for each input"),
    "members that are no arrays": (not_arrays, "image is no array"),
    "pickle": (with_array("gain", np.array([{"a": 1}], object)), "can't be read as an .npz of plain arrays"),
    "missing array": (
        lambda path: save(path, image=samples(8)["image"]),
        r"holds arrays \['image'\]; the model's inputs are \['image', 'gain'\]",
    ),
    "unknown array": (with_array("label", np.zeros(8)), r"holds arrays \['gain', 'image', 'label'\]"),
    "no arrays": (lambda path: save(path), r"holds arrays \[\]"),
    "dtype": (with_array("gain", np.ones((8, 3))), r"gain is float64; the model takes float32. Convert with .astype\('float32'\)"),
    "shape": (with_array("image", np.ones((8, 4, 4, 3), np.float32)), r"image has shape \[8, 4, 4, 3\]; the model takes \[any, 3, 4, 4\]"),
    "rank": (with_array("gain", np.ones(8, np.float32)), r"gain has shape \[8\]; the model takes \[any, 3\], samples first"),
    "scalar": (with_array("gain", np.float32(1)), r"gain has shape \[\]"),
    "counts": (with_array("gain", np.ones((7, 3), np.float32)), r"the arrays hold \[8, 7\] samples; every input needs the same number"),
    "nan": (with_array("gain", nan()), "batch 1, input 1 holds NaN or infinity"),
    "infinity": (with_array("image", np.full((8, 3, 4, 4), np.inf, np.float32)), "batch 0, input 0 holds NaN or infinity"),
    "too few": (lambda path: save(path, **samples(3)), "holds 3 samples; the model takes batches of 4"),
    "none": (lambda path: save(path, **samples(0)), "holds 0 samples"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_in_one_line(fixed: Program, tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    path = tmp_path / "data.npz"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        load_calibration(path, fixed)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_sample_for_a_dynamic_batch_is_refused(dynamic: Program, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 0 samples"):
        load_calibration(save(tmp_path / "data.npz", **samples(0)), dynamic)
