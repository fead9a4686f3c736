from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qn_deploy.errors import InputError
from qn_deploy.sources.images import Preprocess, read_images

RAMP = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def image(path: Path, pixels: np.ndarray = RAMP) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path)


def test_images_become_numbers_as_asked(tmp_path: Path) -> None:
    image(tmp_path / "b.png", RAMP[::-1].copy())
    image(tmp_path / "a" / "a.PNG")
    (tmp_path / "readme.txt").write_text("no image")
    found = read_images(tmp_path, Preprocess.parse("crop=4 mean=0.5,0.25,0 std=0.5"))
    assert found.dtype == torch.float32 and list(found.shape) == [2, 3, 4, 4]
    expected = (RAMP[1:5, 2:6] / 255 - np.array([0.5, 0.25, 0])) / 0.5
    assert np.allclose(found[0].numpy(), expected.transpose(2, 0, 1), atol=1e-6)
    assert torch.equal(found[1, :, :, :], read_images(tmp_path, Preprocess.parse("crop=4 mean=0.5,0.25,0 std=0.5"))[1])


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("", [3, 6, 8]),
        ("resize=3", [3, 3, 4]),
        ("resize=5x7", [3, 5, 7]),
        ("resize=12 crop=10x16", [3, 10, 16]),
        ("channels=gray", [1, 6, 8]),
        ("resize=3 interpolation=nearest", [3, 3, 4]),
    ],
)
def test_sizes(tmp_path: Path, text: str, shape: list[int]) -> None:
    image(tmp_path / "a.png")
    assert list(read_images(tmp_path, Preprocess.parse(text)).shape[1:]) == shape


def test_bgr_turns_the_channels(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    rgb, bgr = (read_images(tmp_path, Preprocess.parse(f"channels={order}")) for order in ("rgb", "bgr"))
    assert torch.equal(rgb.flip(1), bgr)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size=224", "'size=224' is unknown in --preprocess; it takes resize, crop, mean, std"),
        ("resize", "'resize' is unknown in --preprocess"),
        ("resize=0", "resize=0 in --preprocess: expected pixels"),
        ("resize=1x2x3", "expected pixels, resize=224 or resize=224x320"),
        ("mean=a", "mean=a in --preprocess: expected numbers"),
        ("mean=nan", "expected finite numbers"),
        ("std=0", "expected positive numbers"),
        ("mean=1,2", "mean has 2 numbers; expected 1 or one for each of 3 channels"),
        ("channels=hsv", "channels=hsv in --preprocess: expected rgb, bgr, gray"),
        ("crop=4 crop=4", "crop stands twice"),
    ],
)
def test_a_wrong_word_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess.parse(text)


def test_folders_that_give_no_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no images; expected files ending in \.jpg"):
        read_images(tmp_path, Preprocess())
    image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png has 6x8 pixels, less than crop=7x7; add resize=N"):
        read_images(tmp_path, Preprocess(crop=(7, 7)))
    image(tmp_path / "b.png", RAMP[:, :4].copy())
    with pytest.raises(InputError, match=r"b.png has 6x4 pixels, .*a.png 6x8; make them alike"):
        read_images(tmp_path, Preprocess())
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a.png can't be read as an image \(UnidentifiedImageError\)"):
        read_images(tmp_path, Preprocess())
