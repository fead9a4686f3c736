from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qn_deploy.exporting.golden import Vectors
from qn_deploy.exporting.manifest import TensorEntry
from qn_deploy.verification.judge import Check
from qn_deploy.verification.loss import check_loss, groups

DRAW = torch.Generator().manual_seed(0)
NAN = torch.nan


def checked(found: Tensor, expected: Tensor, min_sqnr_db: float | None = None, allow_constant: bool = False) -> list[Check]:
    manifest: Any = SimpleNamespace(
        files={"model.onnx": SimpleNamespace(exporter="onnx")},
        outputs=(TensorEntry("out", "", ()),),
        config=SimpleNamespace(allow_constant=allow_constant),
    )
    return check_loss(manifest, Vectors((), (expected,), {"onnx": (found,)}, {}), min_sqnr_db)


def boxes_and_scores() -> Tensor:
    return torch.cat([300 * torch.rand(2, 40, 4, generator=DRAW), torch.rand(2, 40, 6, generator=DRAW)], 2)


def test_what_differs_much_in_range_has_lines_of_its_own() -> None:
    expected = boxes_and_scores()
    found = expected + 0.1 * torch.randn(expected.shape, generator=DRAW)
    boxes, scores = checked(found, expected)
    assert boxes.what.startswith("float model to simulation (onnx), 4 channels up to 299")
    assert scores.what.startswith("float model to simulation (onnx), 6 channels up to 1")
    assert boxes.found.startswith("SQNR 64.") or boxes.found.startswith("SQNR 65.")  # 20 log10(300 / sqrt 3 / 0.1)
    assert scores.found.startswith("SQNR 15.") or scores.found.startswith("SQNR 14.")
    assert [check.passed for check in checked(found, expected, 30.0)] == [True, False]


def test_an_output_of_one_range_is_one_line() -> None:
    expected = torch.rand(4, 10, generator=DRAW) + 0.5
    (check,) = checked(expected, expected)
    assert (check.what, check.limit, check.passed) == ("float model to simulation (onnx)", "reported", None)
    assert check.found == "SQNR inf dB, cosine 1.0000, max 0, top-1 100.0%"


def test_three_ranges_and_a_channel_of_zeros() -> None:
    values = torch.tensor([[1e4, 1.0, 1e-4, 0.0, 0.5e4]]).repeat(16, 1)
    parts = groups(values, values)
    assert [label for label, *_ in parts] == [", 2 channels up to 1e+04", ", 1 channels up to 1", ", 2 channels up to 0.0001"]
    assert sum(theirs.numel() for *_, theirs in parts) == values.numel()


def test_a_logit_near_zero_for_a_few_images_is_no_range_of_its_own() -> None:
    values = torch.tensor([[9.0, -0.01, 5.0], [8.0, 0.02, -4.0]])
    assert [label for label, *_ in groups(values, values)] == [""]


def test_what_collapsed_fails_unless_the_export_allowed_it() -> None:
    expected = boxes_and_scores()
    found = expected.clone()
    found[..., 4:] = 0.0
    (lost,) = [check for check in checked(found, expected) if check.passed is False]
    assert (lost.rung, lost.limit) == (5, "varies as the float model") and "6 of 10 channels of dimension 2" in lost.found
    allowed = checked(found, expected, allow_constant=True)[-1]
    assert (allowed.limit, allowed.passed) == ("allowed by the export", None)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_integers_and_truth_values_have_no_decibels(kind: torch.dtype) -> None:
    expected = torch.tensor([1, 0, 1, 1]).to(kind)
    (same,) = checked(expected, expected, 30.0)
    assert (same.found, same.passed) == ("bit-identical", None)
    (other,) = checked(torch.tensor([1, 1, 1, 1]).to(kind), expected, 30.0)
    assert (other.found, other.passed) == ("25.00% of values differ", None)


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        ([1.0, 2.0], [1.0, NAN], "the float model gives NaN for 1 of 2 values"),
        ([NAN, 2.0], [1.0, 2.0], "1 of 2 values are NaN where the float model gives numbers"),
        ([NAN, NAN], [NAN, NAN], "every value is NaN: nothing was compared"),
    ],
)
def test_nan_on_one_side_fails(found: list[float], expected: list[float], said: str) -> None:
    (wrong,) = [check for check in checked(torch.tensor(found), torch.tensor(expected)) if check.passed is False]
    assert said in wrong.found


def test_nan_on_both_sides_passes() -> None:
    (check,) = checked(torch.tensor([1.0, NAN]), torch.tensor([1.0, NAN]), 30.0)
    assert check.passed
