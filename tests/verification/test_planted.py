"""Faults, each put into a right build by itself and caught by the rung that is meant for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from qn_deploy import verify
from tests.verification.folders import Folder, failed
from tests.verification.planted import (
    attribute,
    constant,
    drop_a_relu,
    flip_best,
    greater_or_equal,
    grid,
    next_code,
    other_bias_of_the_pte,
    other_blob_codes,
    other_companion,
    output_by,
    swap,
    swap_codes,
    swap_outputs,
    swap_tensors,
    tensors,
)


@dataclass(frozen=True)
class Fault:
    """What is done to which build, and the line that has to fail."""

    build: str
    plant: Callable[[Folder], Any]
    rung: int
    what: str


REWRITE, RUNTIME, LOSS = "model.onnx: weights decode to the table", "model.onnx to integer reference", "float model to simulation (onnx)"


TO_SIMULATION = "model.onnx to simulation"


HEAD = 3  # of ten logits


FAULTS = {
    "a code is another": Fault("both", constant("body.weight/codes", next_code), 1, REWRITE),
    "two codes change places": Fault("both", constant("body.weight/codes", swap_codes), 1, REWRITE),
    "a centroid is another": Fault(
        "both", constant("head.weight/centroids", lambda held: held.flat.__setitem__(0, held.flat[0] ^ 1)), 1, REWRITE
    ),
    "the rows of a table change places": Fault("both", constant("body.weight/codes", lambda held: swap(held, 0, 5)), 1, REWRITE),
    "the columns of a table are shifted": Fault(
        "detector", constant("boxes.weight/codes", lambda held: np.copyto(held, np.roll(held, 1, 2))), 1, REWRITE
    ),
    "two codes of the pte change": Fault("both", other_blob_codes, 1, "model.pte: weights"),
    "an embedding's codes change": Fault("dynamic", constant("embed.weight_codes", lambda held: swap(held, 1, 2)), 1, REWRITE),
    "a table of a dynamic layer changes": Fault("dynamic", constant("up.weight/codes", next_code), 1, REWRITE),
    "a table beside floats changes": Fault("float", constant("up.weight/codes", next_code), 1, REWRITE),
    "a scale is 1 % off": Fault("both", constant("body.weight/scale", lambda held: np.multiply(held, 1.01, out=held)), 1, REWRITE),
    "the scale of one channel is 1 % off": Fault(
        "both", constant("head.weight/scale", lambda held: held.__setitem__(HEAD, held[HEAD] * 1.01)), 1, REWRITE
    ),
    "the scales of two channels change places": Fault("both", constant("body.weight/scale", lambda held: swap(held, 0, 1)), 1, REWRITE),
    "a scale of a dynamic layer is 1 % off": Fault(
        "dynamic", constant("up.weight/scale", lambda held: np.multiply(held, 1.01, out=held)), 1, REWRITE
    ),
    "a bias is dropped": Fault("both", constant("body.bias_snapped", lambda held: held.fill(0)), 3, RUNTIME),
    "a bias is shifted": Fault("both", constant("head.bias_snapped", lambda held: np.add(held, 0.05, out=held)), 3, RUNTIME),
    "the bias of two channels changes places": Fault("both", constant("head.bias_snapped", lambda held: swap(held, 0, 1)), 3, RUNTIME),
    "a bias of the pte is another": Fault("both", other_bias_of_the_pte, 1, "model.pte: weights"),
    "an activation range is halved": Fault("both", grid("body.bias", 1, lambda held: np.multiply(held, 0.5, out=held)), 3, RUNTIME),
    "an activation scale is 1 % off": Fault("both", grid("body.bias", 1, lambda held: np.multiply(held, 1.01, out=held)), 3, RUNTIME),
    "a zero point is off by one": Fault("both", grid("head.bias", 2, lambda held: np.add(held, 1, out=held, casting="unsafe")), 3, RUNTIME),
    "a fused clamp is lost": Fault("both", lambda folder: folder.graph(drop_a_relu), 3, RUNTIME),
    "a pad is wrong": Fault("both", attribute("body.bias", "pads", [0, 0, 2, 2]), 3, RUNTIME),
    "there is no pad": Fault("both", attribute("body.bias", "pads", [0, 0, 0, 0]), 3, RUNTIME),
    "a stride is wrong": Fault("both", attribute("body.bias", "strides", [1, 1]), 3, RUNTIME),
    "a matrix is read transposed": Fault("detector", attribute("boxes.bias", "transB", 0), 3, RUNTIME),
    "a channel of the result is permuted": Fault("detector", output_by("Gather", 0, axis=1), 3, RUNTIME),
    "the sign of a result is another": Fault("detector", output_by("Neg", 1), 3, RUNTIME),
    "a result is of another type": Fault("detector", output_by("Cast", 0, to=onnx.TensorProto.DOUBLE), 3, RUNTIME),
    "an output is missing": Fault("detector", lambda folder: folder.graph(lambda graph: graph.output.pop()), 3, RUNTIME),
    "two outputs change places": Fault("detector", lambda folder: folder.graph(swap_outputs), 3, RUNTIME),
    "integers are others": Fault("detector", lambda folder: folder.graph(flip_best), 3, RUNTIME),
    "truth values are others": Fault("detector", lambda folder: folder.graph(greater_or_equal), 3, RUNTIME),
    "golden outputs change places": Fault("detector", swap_tensors("reference/onnx/0", "reference/onnx/1"), 3, RUNTIME),
    "golden inputs are others": Fault("detector", tensors(lambda held: held["input/0"].neg_()), 3, RUNTIME),
    "NaN where the reference has a number": Fault(
        "float", constant("norm.bias", lambda held: held.__setitem__(5, np.nan)), 3, TO_SIMULATION
    ),
    "a number where the reference has NaN": Fault(
        "float", tensors(lambda held: held["simulated/onnx/0"][0, 0].fill_(torch.nan)), 3, TO_SIMULATION
    ),
    "a bias beside floats is 10 % off": Fault(
        "float", constant("up.bias", lambda held: np.multiply(held, 1.1, out=held)), 3, TO_SIMULATION
    ),
    "a bias of a dynamic layer is dropped": Fault("dynamic", constant("down.bias", lambda held: held.fill(0)), 3, TO_SIMULATION),
    "the container is damaged": Fault("both", other_companion, 4, "model.stock.qnz to the dense program"),
    "an output became constant": Fault("both", tensors(lambda held: held["simulated/onnx/0"].fill_(0)), 5, LOSS),
    "nothing is compressed": Fault("both", lambda folder: folder.manifest(lambda held: held.update(weights={})), 1, "compressed weights"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_caught_by_its_rung(name: str, builds: Callable[[str], Path], here: None, tmp_path: Path) -> None:
    fault = FAULTS[name]
    folder = Folder(Path(shutil.copytree(builds(fault.build), tmp_path / "copy")))
    fault.plant(folder)
    report = verify(folder.path)
    assert not report.passed
    found = failed(report)
    assert (fault.rung, fault.what) in found, found
    if fault.rung > 1:  # what is wrong elsewhere is not taken for a weight
        assert not [what for rung, what in found if rung == 1]


@pytest.mark.parametrize("name", ["both", "detector", "dynamic", "float"])
def test_the_builds_are_right_without_a_fault(name: str, builds: Callable[[str], Path], here: None) -> None:
    report = verify(builds(name))
    assert report.passed, str(report)
