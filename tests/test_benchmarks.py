"""The form that all benchmarks share, and that each script starts. What they measure takes minutes and is not run here."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if "__main__" in path.read_text())


def load(name: str) -> ModuleType:
    """A file of benchmarks/ as its neighbours import it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)


rows, paired, cifar10 = load("rows"), load("paired"), load("cifar10")


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_script_tells_its_options(script: str) -> None:
    result = CliRunner().invoke(load(Path(script).stem).main, ["--help"])
    assert result.exit_code == 0, result.output
    assert {"--json", "--seed"} <= set(result.output.split())


def test_the_readme_lists_every_script() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert [script for script in SCRIPTS if f"| `{script}` |" not in readme] == []


@pytest.mark.parametrize(
    ("make", "value", "bar", "met"),
    [
        ("at_most", 0.3, "<= 0.3", True),
        ("at_most", 0.31, "<= 0.3", False),
        ("below", 0.3, "< 0.3", False),
        ("below", 0.29, "< 0.3", True),
        ("at_least", 0.3, ">= 0.3", True),
        ("at_least", 0.29, ">= 0.3", False),
    ],
)
def test_a_bar_is_met_or_not(make: str, value: float, bar: str, met: bool) -> None:
    assert getattr(rows, make)("a", value, "points", 0.3) == rows.Row("a", value, "points", bar, met)


def test_the_json_has_the_form(tmp_path: Path) -> None:
    measured = [rows.Row("accuracy [float]", 81.5, "%"), rows.at_most("model.onnx", 90_000, "bytes", 100_000)]
    assert rows.finish("a title", measured, {"seed": 7}, tmp_path / "rows.json") == 0
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["title"] == "a title"
    assert written["settings"]["seed"] == 7
    assert {"machine", "versions"} <= written["settings"].keys()
    assert written["rows"] == [
        {"name": "accuracy [float]", "value": 81.5, "unit": "%", "bar": None, "met": None},
        {"name": "model.onnx", "value": 90_000, "unit": "bytes", "bar": "<= 100,000", "met": True},
    ]


def test_a_missed_bar_is_named_and_sets_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert rows.finish("a title", [rows.at_most("points apart", 1, "points", 0.3)], {}, None) == 1
    assert "1 bars missed: points apart" in capsys.readouterr().out


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="called a"):
        rows.finish("a title", [rows.Row("a", 1, "ms"), rows.Row("b", 1, "ms"), rows.Row("a", 2, "ms")], {}, None)


def test_a_number_that_json_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows.finish("a title", [rows.Row("accuracy", float("nan"), "%")], {}, tmp_path / "rows.json")
    assert not (tmp_path / "rows.json").exists()


def test_a_pair_runs_in_turn_and_is_a_ratio_of_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], ""

    def call(name: str, seconds: float) -> None:
        nonlocal order
        order += name
        # Now and then somebody else has the processor: medians do not see it.
        clock[0] += seconds * (100 if len(order) % 17 == 0 else 1)

    monkeypatch.setattr(paired.time, "perf_counter", lambda: clock[0])
    pair = paired.paired(lambda: call("A", 0.02), lambda: call("B", 0.01), samples=20)
    assert pair.first == pytest.approx(0.02)
    assert pair.ratio == pytest.approx(2)
    assert "AB" * 20 in order
    assert [row.unit for row in paired.rows("time", "a", "b", pair)] == ["x", "ms", "ms"]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), batch=st.integers(1, 50), steps=st.integers(0, 20), seed=st.integers(0, 9))
def test_shuffled_gives_whole_batches_epoch_after_epoch(count: int, batch: int, steps: int, seed: int) -> None:
    batches = list(cifar10.shuffled(count, batch, steps, seed))
    assert [len(chosen) for chosen in batches] == [min(batch, count)] * steps
    for start in range(0, steps, count // min(batch, count)):
        epoch = torch.cat(batches[start : start + count // min(batch, count)])
        assert len(set(epoch.tolist())) == len(epoch) and 0 <= int(epoch.min()) <= int(epoch.max()) < count


def test_images_are_decoded_normalised_and_sampled(tmp_path: Path) -> None:
    # 20 gray JPEGs; the label is the level.
    files = []
    for level in range(0, 200, 10):
        Image.new("RGB", (32, 32), (level, level, level)).save(buffer := io.BytesIO(), "JPEG", quality=95)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offset = np.cumsum([0, *map(len, files)])
    np.savez(tmp_path / "a.npz", jpeg=np.concatenate(files), offset=offset, label=np.arange(0, 200, 10))

    images, labels = cifar10.images(tmp_path / "a.npz", 8, seed=3)
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert len(set(labels.tolist())) == 8 and labels.tolist() != sorted(labels.tolist())
    green = (labels / 255 - 0.456) / 0.224
    assert torch.allclose(images[:, 1], green[:, None, None].expand(8, 32, 32), atol=0.02)
    assert torch.equal(images, cifar10.images(tmp_path / "a.npz", 8, seed=3)[0])
    assert not torch.equal(labels, cifar10.images(tmp_path / "a.npz", 8, seed=4)[1])


def test_missing_data_is_told_and_no_failure(tmp_path: Path) -> None:
    script = load("cifar_resnet")
    result = CliRunner().invoke(script.main, ["--data", str(tmp_path), "--json", str(tmp_path / "rows.json")])
    assert result.exit_code == 0
    assert result.output.startswith("skipped: ResNet-20 on CIFAR-10: ") and "cifar10_test.npz" in result.output
    written = json.loads((tmp_path / "rows.json").read_text())
    assert written["rows"] == [] and "not found" in written["settings"]["skipped"]


def test_the_recipe_is_the_one_of_the_published_sizes() -> None:
    script, models = load("cifar_resnet"), load("models")
    model = models.CifarResNet()
    methods = {
        name: script.RECIPE.method_for(f"{name}.weight", module) for name, module in model.named_modules() if hasattr(module, "weight")
    }
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert methods["conv1"] == script.Int8()
    assert methods["linear"] == script.Table(8, 16)
    assert all(
        methods[name] == script.Table(9, 64 if module.in_channels == 16 else 256)
        for name, module in convolutions.items()
        if name != "conv1"
    )
