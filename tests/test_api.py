from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qn_deploy
from qn_deploy.compression import PQWeight
from qn_deploy.errors import InputError
from qn_deploy.exporting.manifest import read_manifest

ROOT = Path(__file__).parents[1]


def python(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_importing_the_package_loads_nothing_and_its_names_load_when_used() -> None:
    script = """if True:
        import sys, qn_deploy
        heavy = {"torch", "numpy", "onnx", "onnxruntime", "executorch", "rich", "safetensors", "faiss"}
        print(*sorted(heavy & set(sys.modules)))
        print(qn_deploy.recipe.Recipe.__name__, qn_deploy.ipq.__name__, qn_deploy.noise.attach.__name__)
        from qn_deploy import *
        print(save.__name__, load.__name__, export.__name__, verify.__name__, qn_deploy.save is save)
    """
    assert python(script).splitlines() == ["", "Recipe ipq attach", "save load export verify True"]


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'qn_deploy' has no attribute 'quantize'"):
        qn_deploy.quantize  # noqa: B018


def test_every_public_name_is_there() -> None:
    functions = {"calibrate", "capture", "compress", "export", "import_checkpoint", "ipq", "load", "plan", "save", "tune", "verify"}
    configs = {"BlockConfig", "CodeConfig", "CompressConfig", "ExportConfig", "IPQConfig", "PlanConfig", "TuneConfig"}
    assert set(qn_deploy.__all__) == functions | configs | {"noise", "recipe"}
    assert all(callable(getattr(qn_deploy, name)) for name in functions)
    for name in qn_deploy.__all__:
        assert getattr(qn_deploy, name).__doc__


def test_what_is_saved_is_what_is_loaded(model: Any) -> None:
    saved, loaded = model.program, qn_deploy.load(str(model.path))
    assert sorted(loaded.weights) == ["body.weight", "head.weight", "stem.weight"]
    for name, weight in saved.weights.items():
        other = loaded.weights[name]
        assert isinstance(weight, PQWeight)
        assert isinstance(other, PQWeight)
        assert all(torch.equal(getattr(weight, part), getattr(other, part)) for part in ("codes", "centroids", "scale"))
    assert loaded.recipe == saved.recipe
    assert (loaded.inputs, loaded.outputs, loaded.ranges) == (saved.inputs, saved.outputs, saved.ranges)
    with torch.no_grad():
        assert torch.equal(loaded.golden.outputs[0], model.module(*model.inputs))  # the *unquantized* model's
        assert torch.equal(loaded.exported.module()(*model.inputs)[0], saved.exported.module()(*model.inputs)[0])
    assert torch.equal(loaded.golden.inputs[0], model.inputs[0])


def test_the_same_model_gives_the_same_bytes(model: Any, tmp_path: Path) -> None:
    qn_deploy.save(model.program, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == model.path.read_bytes()


@pytest.mark.slow
def test_from_a_module_to_a_report_in_python(model: Any, tmp_path: Path) -> None:
    """The results are typed, and print as the tables that the commands show."""
    build = qn_deploy.export(model.program, tmp_path, qn_deploy.ExportConfig("x86", only=("onnx",)))
    assert [(name, entry.exporter) for name, entry in build.manifest.files.items()] == [("model.onnx", "onnx")]
    assert "model.onnx" in str(build)
    report = qn_deploy.verify(tmp_path)
    assert report.passed
    assert str(report).splitlines()[-1] == "all 3 checks passed"


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
    assert qn_deploy.load(tmp_path / "model.pt").ranges


def test_a_build_says_what_is_in_it(model: Any, build: Any) -> None:
    manifest = read_manifest(build.folder)
    sizes = {name: weight.nbytes for name, weight in model.program.weights.items()}
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
