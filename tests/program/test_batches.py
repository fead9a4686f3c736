from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qn_deploy.errors import InputError
from qn_deploy.program.batches import as_batch, as_batches, read_batches
from qn_deploy.program.capture import capture
from qn_deploy.program.program import Program


class Two(nn.Module):
    """Takes an image [N, 3, 4, 4] and a gain [N, 3]."""

    def forward(self, image: Tensor, gain: Tensor) -> Tensor:
        return image.mean((2, 3)) * gain


INPUTS = (torch.randn(4, 3, 4, 4), torch.rand(4, 3))


@pytest.fixture(scope="module")
def fixed() -> Program:
    return capture(Two(), INPUTS, dynamic_shapes=())


@pytest.fixture(scope="module")
def dynamic() -> Program:
    return capture(Two(), INPUTS)


def samples(count: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {"image": draw.standard_normal((count, 3, 4, 4), np.float32), "gain": draw.random((count, 3), np.float32)}


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (32, [32]), (70, [32, 32, 6])])
def test_a_dynamic_batch_takes_every_sample(dynamic: Program, tmp_path: Path, count: int, sizes: list[int]) -> None:
    arrays = samples(count)
    batches = read_batches(save(tmp_path / "data.npz", **arrays), dynamic)
    assert [len(image) for image, _ in batches] == sizes
    assert np.array_equal(torch.cat([image for image, _ in batches]).numpy(), arrays["image"])
    assert np.array_equal(torch.cat([gain for _, gain in batches]).numpy(), arrays["gain"])


def test_a_fixed_batch_takes_whole_batches(fixed: Program, tmp_path: Path) -> None:
    batches = read_batches(save(tmp_path / "data.npz", **samples(11)), fixed)
    assert [tuple(len(tensor) for tensor in batch) for batch in batches] == [(4, 4), (4, 4)]


def test_the_order_of_the_arrays_in_the_file_does_not_matter(dynamic: Program, tmp_path: Path) -> None:
    arrays = samples(3)
    ((image, gain),) = read_batches(save(tmp_path / "data.npz", gain=arrays["gain"], image=arrays["image"]), dynamic)
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


def giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(8 << 30)


def bomb(path: Path) -> None:
    """Three gigabytes of zeros in 3 MB."""
    arrays: dict[str, Any] = samples(8)
    np.savez(path, **arrays)
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("more.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(300):
            file.write(bytes(10_000_000))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "Is a directory"),
    "empty file": (lambda path: path.write_bytes(b""), "can't be read as an .npz of plain arrays"),
    "text": (lambda path: path.write_text("image, gain"), "can't be read as an .npz of plain arrays"),
    "truncated": (truncated, "can't be read as an .npz of plain arrays"),
    "damaged": (damaged, "can't be read as an .npz of plain arrays"),
    "damaged and compressed": (damaged_and_compressed, "can't be read as an .npz of plain arrays"),
    "single array": (single, "is a single array; batches are an .npz with one array for each input"),
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
    "nan": (with_array("gain", nan()), "batch 1, input gain holds NaN or infinity"),
    "infinity": (with_array("image", np.full((8, 3, 4, 4), np.inf, np.float32)), "batch 0, input image holds NaN or infinity"),
    "outlier": (
        with_array("gain", np.full((8, 3), 3e38, np.float32)),
        r"batch 0, input gain holds 3e\+38; expected magnitudes up to 1e\+30",
    ),
    "big-endian": (
        with_array("gain", np.ones((8, 3), ">f4")),
        r"gain is float32, the bytes of each number in the other order; the model takes float32. Convert with .astype\('float32'\)",
    ),
    "pipe": (os.mkfifo, "it is a pipe or a device"),
    "sparse giant": (giant, "holds 8,589,934,592 bytes"),
    "bomb": (bomb, "holds 3,000,001,[0-9]+ bytes of arrays; expected at most 2,147,483,648"),
    "too few": (lambda path: save(path, **samples(3)), "holds 3 samples; the model takes batches of 4"),
    "none": (lambda path: save(path, **samples(0)), "holds 0 samples"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_in_one_line(fixed: Program, tmp_path: Path, case: str) -> None:
    make, message = BAD[case]
    path = tmp_path / "data.npz"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read_batches(path, fixed)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_sample_for_a_dynamic_batch_is_refused(dynamic: Program, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 0 samples"):
        read_batches(save(tmp_path / "data.npz", **samples(0)), dynamic)


def test_a_batch_is_a_tuple_a_list_or_a_dict(dynamic: Program) -> None:
    image, gain = INPUTS
    for batch in (INPUTS, [image, gain], {"gain": gain, "image": image}):
        assert [tensor is expected for tensor, expected in zip(as_batch(dynamic, batch), INPUTS, strict=True)] == [True, True]
    assert as_batches(dynamic, iter([INPUTS, INPUTS])) == [INPUTS, INPUTS]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"image": INPUTS[0]}, "batch 1 has inputs named image; the model takes image, gain"),
        (INPUTS[0], "a batch is a Tensor; give tuples of input tensors"),
        (INPUTS[:1], "batch 1 holds 1 inputs; the model takes 2: image, gain"),
        ((INPUTS[0], INPUTS[1].double()), r"batch 1, input gain is torch\.float64 \[4, 3\]; expected torch\.float32 \[any, 3\]"),
        ((INPUTS[0], INPUTS[1].to("meta")), "batch 1, input gain is on meta; expected it on cpu"),
        ((INPUTS[0], INPUTS[1][:, :2]), r"batch 1, input gain is torch\.float32 \[4, 2\]; expected torch\.float32 \[any, 3\]"),
        ((INPUTS[0], INPUTS[1][0]), r"batch 1, input gain is torch\.float32 \[3\]"),
        ((INPUTS[0], [1.0]), "batch 1, input gain is a list; expected a tensor"),
        ((INPUTS[0], (-INPUTS[1]).log()), "batch 1, input gain holds NaN or infinity"),
        ((INPUTS[0], INPUTS[1] / 0), "batch 1, input gain holds NaN or infinity"),
        ((INPUTS[0], INPUTS[1] * 1e38), r"batch 1, input gain holds .*e\+37; expected magnitudes up to 1e\+30"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(dynamic: Program, batch: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        as_batches(dynamic, [INPUTS, batch])


def test_no_batches_are_refused(dynamic: Program) -> None:
    with pytest.raises(InputError, match="there are no batches"):
        as_batches(dynamic, [])
