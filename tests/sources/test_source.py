from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from qn_deploy.errors import InputError
from qn_deploy.sources.code import call
from qn_deploy.sources.data import read_data
from qn_deploy.sources.ready import ready
from qn_deploy.sources.source import Source


def test_code_is_captured_with_its_checkpoint_and_described_inputs(net: str, here: Path) -> None:
    trained = {name: value + 1 for name, value in call(f"{net}:build").state_dict().items()}
    safetensors.torch.save_file(trained, here / "net.safetensors")
    program = Source(f"{net}:build", here / "net.safetensors", ("image=float32[1,3,8,8]",)).open()
    assert program.inputs == ("image",) and not program.weights
    assert torch.equal(program.exported.state_dict["head.weight"], trained["head.weight"])


def test_examples_come_from_the_data(net: str, here: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((9, 3, 8, 8), np.float32)
    np.savez(here / "data.npz", image=samples)
    program = Source(f"{net}:build").open(read_data("data.npz"))
    assert np.array_equal(program.golden.inputs[0].numpy(), samples[:2])
    exported = torch.export.export(call(f"{net}:build").eval(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(exported, here / "net.pt2")
    fixed = Source("net.pt2").open(read_data("data.npz"))
    assert len(fixed.golden.inputs[0]) == 1 and float(fixed.golden.inputs[0].abs().max()) > 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("{net}:build"), "needs example inputs to be captured with: --calibrate data.npz, or --example"),
        (Source("{net}:number", None, ("x=float32[1]",)), "gives a int; expected a torch.nn.Module"),
        (Source("net.pt2", Path("w.pt")), "--weights is for a model that your code makes"),
        (Source("net.pt2"), "cannot read net.pt2: No such file"),
    ],
)
def test_a_source_that_gives_no_model_is_refused(net: str, source: Source, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Source(source.model.format(net=net), source.weights, source.examples).open()


def test_what_comes_from_training_is_compressed_on_the_way_to_export(net: str) -> None:
    source = f"{net}:build"
    data = read_data(f"{net}:batches")
    program = Source(source).open(data)
    small, note = ready(source, program, data.for_program(program))
    assert set(small.weights) == {"conv.weight", "head.weight"} and small.ranges
    assert "was compressed on the way, by the recipe auto, with error feedback" in note and note in small.notes
    again, note = ready("model.pt", small, None)
    assert again is small and note == ""


@pytest.mark.slow
def test_a_librarys_own_function_is_a_source() -> None:
    """As README.md tells: no Python of the user's for a network of timm."""
    pytest.importorskip("timm")
    program = Source("timm.models.efficientnet:test_efficientnet", None, ("x=float32[2,3,32,32]",)).open()
    assert program.inputs == ("x",) and program.golden.outputs[0].shape == (2, 1000)
