from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qn_deploy
from qn_deploy.compression import PQWeight
from qn_deploy.errors import ExportError, InputError
from qn_deploy.exporting.manifest import read_manifest

ROOT = Path(__file__).parents[1]


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_nothing_and_its_names_load_when_used() -> None:
    script = """if True:
        import sys, qn_deploy
        heavy = {"torch", "numpy", "onnx", "onnxruntime", "executorch", "rich", "safetensors", "faiss"}
        print(*sorted(heavy & set(sys.modules)))
        print(qn_deploy.recipe.Recipe.__name__, qn_deploy.compression.ipq.__name__, qn_deploy.noise.attach.__name__)
        from qn_deploy import *
        print(save.__name__, load.__name__, qn_deploy.save is save)
    """
    assert python(script).splitlines() == ["", "Recipe ipq attach", "save load True"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'qn_deploy' has no attribute 'quantize'"):
        qn_deploy.quantize  # noqa: B018


def test_every_public_name_is_there() -> None:
    assert sorted(qn_deploy.__all__) == ["compress", "load", "noise", "recipe", "save"]
    for name in qn_deploy.__all__:
        assert getattr(qn_deploy, name).__doc__


def test_what_is_saved_is_what_is_loaded(model: Any, tmp_path: Path) -> None:
    saved = qn_deploy.save(model.compressed, str(tmp_path / "model.pt"), example_inputs=model.inputs, calibration=[model.inputs])
    loaded = qn_deploy.load(str(tmp_path / "model.pt"))
    assert sorted(loaded.weights) == ["body.weight", "head.weight", "stem.weight"]
    for name, weight in model.compressed.weights.items():
        assert isinstance(weight, PQWeight)
        for other in (saved.weights[name], loaded.weights[name]):
            assert isinstance(other, PQWeight)
            assert all(torch.equal(getattr(weight, part), getattr(other, part)) for part in ("codes", "centroids", "scale"))
    assert loaded.recipe == saved.recipe == model.compressed.recipe
    with torch.no_grad():
        expected = model.compressed.model(*model.inputs)
        assert torch.equal(loaded.golden.outputs[0], model.compressed.reference(*model.inputs))  # the *unquantized* model's
        torch.testing.assert_close(loaded.exported.module()(*model.inputs), expected)
        assert torch.equal(loaded.exported.module()(*model.inputs), saved.exported.module()(*model.inputs))
    assert torch.equal(loaded.golden.inputs[0], model.inputs[0])
    assert torch.equal(loaded.calibration[0][0], model.inputs[0])


def test_the_same_model_gives_the_same_bytes(model: Any, tmp_path: Path) -> None:
    for name in ("one.pt", "two.pt"):
        qn_deploy.save(model.compressed, tmp_path / name, example_inputs=model.inputs, calibration=[model.inputs])
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_a_bare_module_is_its_own_reference_unless_one_is_given(model: Any, tmp_path: Path) -> None:
    bare = model.compressed.model
    float_model = model.compressed.reference
    with torch.no_grad():
        expected, original = bare(*model.inputs), float_model(*model.inputs)
    alone = qn_deploy.save(bare, tmp_path / "model.pt", example_inputs=model.inputs)
    assert sorted(alone.weights) == ["body.weight", "head.weight", "stem.weight"]
    torch.testing.assert_close(alone.golden.outputs[0], expected)
    assert alone.recipe is None
    given = qn_deploy.save(bare, tmp_path / "model.pt", example_inputs=model.inputs, reference=float_model)
    assert torch.equal(given.golden.outputs[0], original)


def test_saving_changes_neither_the_model_nor_its_mode(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    qn_deploy.save(net, tmp_path / "model.pt", example_inputs=(torch.ones(2, 4),))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.full((1, 1, 8, 8), torch.nan),), r"calibration batch 1, input 0 holds NaN or infinity"),
        (
            (torch.zeros(1, 8, 8),),
            r"calibration batch 1, input 0 is torch\.float32 \[1, 8, 8\]; expected torch\.float32 shaped like \[4, 1",
        ),
        ((torch.zeros(1, 1, 8, 8).double(),), r"calibration batch 1, input 0 is torch\.float64"),
        ((torch.zeros(1, 1, 8, 8),) * 2, r"calibration batch 1 holds 2 inputs; the model takes 1"),
    ],
)
def test_a_calibration_batch_that_does_not_fit_leaves_the_good_file(
    model: Any, tmp_path: Path, batch: tuple[Tensor, ...], message: str
) -> None:
    (tmp_path / "model.pt").write_bytes(b"the good file")
    with pytest.raises(InputError, match=message):
        qn_deploy.save(model.compressed, tmp_path / "model.pt", example_inputs=model.inputs, calibration=[model.inputs, batch])
    assert (tmp_path / "model.pt").read_bytes() == b"the good file"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_model_that_cannot_be_captured_says_why(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ExportError, match=r"torch\.export can't capture Branching: .*what it asks for there must change in the model"):
        qn_deploy.save(Branching(), tmp_path / "model.pt", example_inputs=(torch.ones(2),))
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.pt: No such file"):
        qn_deploy.load(tmp_path / "nowhere.pt")


def test_the_readmes_training_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first python block of README.md, as it stands there, on a stand-in for the user's model and data."""
    (code, *_) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    images = torch.randn(4, 1, 6, 6)
    exec(code, {"torch": torch, "model": net, "train": lambda net: net.eval(), "images": images, "batches": [(images,)] * 2})
    assert qn_deploy.load(tmp_path / "model.pt").calibration


def test_a_build_says_what_is_in_it(model: Any, build: Any) -> None:
    manifest = read_manifest(build.folder)
    sizes = {name: weight.nbytes for name, weight in model.compressed.weights.items()}
    assert {name: entry.bytes for name, entry in manifest.weights.items()} == sizes
    assert {entry.kind for entry in manifest.weights.values()} == {"table"}
    assert manifest.theoretical_bytes == sum(sizes.values()) + 4 * (16 + 16 + 10)  # the three float biases
    assert manifest.float_bytes == 4 * (16 * 9 + 16 * 144 + 10 * 16 + 16 + 16 + 10)
    assert (manifest.config.target, manifest.activations) == ("arm", "static")
    assert {entry.inexact for entry in manifest.files.values()} == {()}
    assert [(entry.name, entry.dtype, entry.shape) for entry in manifest.inputs] == [("image", "float32", (None, 1, 8, 8))]
    assert [(entry.name, entry.dtype, entry.shape) for entry in manifest.outputs] == [("output", "float32", (None, 10))]
    for name, entry in manifest.files.items():
        assert (build.folder / name).stat().st_size == entry.bytes
        assert entry.bytes <= 1.05 * manifest.theoretical_bytes + 24 * 1024
