from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

from tests.cli.runs import refusal, run


def calibrated(tmp_path: Path, model: Any, **arrays: Any) -> Result:
    np.savez(tmp_path / "data.npz", **arrays)
    return run("export", model.path, "--calibrate", tmp_path / "data.npz", "--out", tmp_path / "build")


GOOD = np.zeros((40, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((40, 3, 8, 8), np.float32)}, "image has shape [40, 3, 8, 8]; the model takes [any, 1, 8, 8], samples first"),
        ({"image": np.zeros((40, 64), np.float32)}, "image has shape [40, 64]; the model takes [any, 1, 8, 8], samples first"),
        ({"image": GOOD.astype(np.float64)}, "image is float64; the model takes float32. Convert with .astype('float32')"),
        ({"image": np.where(np.arange(40).reshape(-1, 1, 1, 1) == 37, np.nan, GOOD).astype(np.float32)}, "batch 1, input image holds NaN"),
        ({"image": np.full((40, 1, 8, 8), np.inf, np.float32)}, "batch 0, input image holds NaN or infinity"),
        ({"image": GOOD[:0]}, "image holds no samples; expected them along the first axis"),
        ({"images": GOOD}, "holds arrays ['images']; the model's inputs are ['image']. Save with np.savez(path, image=...)"),
        ({"image": GOOD, "label": GOOD}, "holds arrays ['image', 'label']; the model's inputs are ['image']"),
        ({}, "holds no arrays; save one for each input: np.savez('data.npz', image=...)"),
        ({"image": np.array([object()])}, "can't be read as an .npz of plain arrays"),
    ],
    ids=["channels", "rank", "dtype", "NaN", "infinity", "empty", "name", "too many", "none", "pickle"],
)
def test_calibration_data_that_does_not_fit_is_refused(model: Any, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    line = refusal(calibrated(tmp_path, model, **arrays))
    assert str(tmp_path / "data.npz") in line
    assert message in line
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot read {path}: No such file or directory"),
        (lambda path: path.mkdir(), "{path} holds no images; expected files ending in .jpg"),
        (lambda path: path.write_bytes(b""), "can't be read as an .npz"),
        (lambda path: path.write_bytes(b"1,2,3\n"), "can't be read as an .npz"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(50)), "can't be read as an .npz"),
        (lambda path: np.save(path.open("wb"), GOOD), "is a single array; batches are an .npz"),
    ],
    ids=["missing", "directory", "empty", "text", "damaged", "npy"],
)
def test_calibration_data_of_another_kind_is_refused(model: Any, tmp_path: Path, make: Any, message: str) -> None:
    path = tmp_path / "data.npz"
    make(path)
    line = refusal(run("export", model.path, "--calibrate", path))
    assert str(path) in line
    assert message.format(path=path) in line
