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

from qn_deploy.compression import compress
from qn_deploy.errors import ToolchainError
from qn_deploy.exporting.describe import theoretical_bytes
from qn_deploy.program.capture import capture
from qn_deploy.recipe import Recipe, Rule, Table
from qn_deploy.recipe.parameters import Slot
from qn_deploy.verification.devices.bundle import find_bundle

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


def gray_archive(file: Path, labels: np.ndarray) -> None:
    """20 gray JPEGs, of levels 0 to 190."""
    files = []
    for level in range(0, 200, 10):
        Image.new("RGB", (32, 32), (level, level, level)).save(buffer := io.BytesIO(), "JPEG", quality=95)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    np.savez(file, jpeg=np.concatenate(files), offset=np.cumsum([0, *map(len, files)]), label=labels)


def test_images_are_decoded_normalised_and_sampled(tmp_path: Path) -> None:
    gray_archive(tmp_path / "a.npz", np.arange(0, 200, 10))
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
    script, models = load("cifar_training"), load("models")
    model = models.CifarResNet()
    methods = {
        name: script.RECIPE.method_for(Slot(f"{name}.weight", module, "weight").site)
        for name, module in model.named_modules()
        if hasattr(module, "weight")
    }
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)}
    assert methods["conv1"] == script.Int8()
    assert methods["linear"] == script.Table(8, 16)
    assert all(
        methods[name] == script.Table(9, 64 if module.in_channels == 16 else 256)
        for name, module in convolutions.items()
        if name != "conv1"
    )


def test_kmeans_is_measured(tmp_path: Path) -> None:
    options = ["--rows", "64", "--columns", "64", "--centroids", "16", "--samples", "2", "--threads", str(torch.get_num_threads())]
    result = CliRunner().invoke(load("kmeans").main, [*options, "--json", str(tmp_path / "rows.json")])
    assert result.exit_code in (0, 1), result.output  # so small a matrix keeps no bar
    measured = {row["name"]: row["value"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert measured["error"] == pytest.approx(measured["error, faiss"], rel=0.1)
    assert measured["weighted time: ours / faiss"] > 0


def test_seeds_become_a_mean_with_a_bar_and_a_spread() -> None:
    assert rows.over_seeds("a", [80.0, 83.0, 82.0], "%", 81.5) == [
        rows.Row("a: mean", pytest.approx(81 + 2 / 3), "%", ">= 81.5", True),
        rows.Row("a: spread", 3.0, "%"),
    ]
    assert rows.over_seeds("a", [80.0], "%")[0] == rows.Row("a: mean", 80.0, "%")


def test_constants_are_tables_and_what_stayed_float() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 64, 3, bias=False), torch.nn.BatchNorm2d(64), torch.nn.Flatten()).eval()
    compressed = compress(capture(model, (torch.zeros(1, 16, 3, 3),)), Recipe((Rule(Table(9, 16, 1)),)))
    assert theoretical_bytes(compressed) == 64 * 16 // 2 + 16 * 9 + 4 * 64 + 4 * 64  # codes, centroids, scales, the folded bias


def test_sentences_become_numbers_and_batches() -> None:
    text = load("text")
    numbers = text.vocabulary(["b a", "c a"])
    assert numbers == {"a": 2, "b": 3, "c": 4}
    found = text.encode([("c new a", 1), ("b", 0)], numbers)
    assert found.ids[:, :4].tolist() == [[4, text.UNKNOWN, 2, text.PAD], [3, 0, 0, 0]] and found.labels.tolist() == [1, 0]
    assert sorted(batch.ids.shape[1] for batch in found.batches(1, seed=0)) == [1, 3]


def test_padding_changes_no_answer() -> None:
    text = load("text")
    model = text.TextClassifier(10, width=16).eval()
    ids = torch.randint(2, 10, (3, 5))
    assert torch.allclose(model(ids), model(torch.nn.functional.pad(ids, (0, 4))), atol=1e-6)


def test_fit_keeps_the_best_epoch(tmp_path: Path) -> None:
    text = load("text")
    torch.manual_seed(0)
    model = text.TextClassifier(6, width=16)
    train = text.Sentences(torch.tensor([[2, 3], [4, 5]] * 32), torch.tensor([0, 1] * 32))
    wrong = text.Sentences(train.ids, 1 - train.labels)  # so that learning makes dev worse
    started = []
    text.fit(model, train, wrong, 6, 1e-2, 0, lambda: started.append(wrong.accuracy(model.eval())))
    assert len(started) == 6
    assert wrong.accuracy(model) >= max(started[1:])


@pytest.mark.slow
def test_sst2_is_measured(tmp_path: Path) -> None:
    for file in load("sst2").FILES:
        (tmp_path / file).write_text("a good film\t1\na bad film\t0\n" * 16)
    options = ["--seeds", "2", "--width", "16", "--epochs", "2", "--tune-steps", "1", "--threads", str(torch.get_num_threads())]
    result = CliRunner().invoke(load("sst2").main, ["--data", str(tmp_path), *options, "--json", str(tmp_path / "rows.json")])
    assert result.exit_code == 1, result.output  # so few words make no model 24 times smaller
    measured = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())["rows"]}
    assert "Quant-Noise, tables, tuned: mean" in measured and measured["float constants / ours"]["met"] is False


def cifar_folder(folder: Path) -> Path:
    """20 images to train with, 20 to test, and a ResNet-20 that knows nothing."""
    for name in ("TRAIN", "TEST"):
        (folder / getattr(cifar10, name)).parent.mkdir(exist_ok=True)
        gray_archive(folder / getattr(cifar10, name), np.arange(20) // 2)
    (folder / cifar10.RESNET20).parent.mkdir()
    torch.save({"state_dict": load("models").CifarResNet().state_dict()}, folder / cifar10.RESNET20)
    return folder


@pytest.mark.slow
def test_noise_on_resnet_is_measured(tmp_path: Path) -> None:
    cifar = cifar_folder(tmp_path)
    options = ["--seeds", "1", "--images", "20", "--train-images", "20", "--steps", "1", "--ipq-steps", "1"]
    options += ["--threads", str(torch.get_num_threads()), "--json", str(cifar / "rows.json")]
    result = CliRunner().invoke(load("cifar_noise").main, ["--data", str(cifar), *options])
    assert result.exit_code == 1, result.output
    measured = {row["name"]: row for row in json.loads((cifar / "rows.json").read_text())["rows"]}
    assert {"Quant-Noise, then iPQ: mean", "Quant-Noise, then int4: mean", "iPQ: gain by noise, mean"} <= measured.keys()
    assert measured["Quant-Noise, then iPQ: constants"]["met"] is True


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.device
def test_instructions_are_counted(tmp_path: Path) -> None:
    instructions, workloads = load("instructions"), load("workloads")
    try:
        find_bundle()
        device = instructions.Counting("cortex-a76", instructions.build_plugin(tmp_path))
    except ToolchainError as error:
        pytest.skip(str(error))
    workload = workloads.Workload(
        lambda: torch.nn.Sequential(torch.nn.Linear(256, 256)), lambda: torch.randn(1, 256), workloads.STATIC, workloads.LINEAR
    )
    found = {row.name.split(": ")[1]: row for row in instructions._workload("tiny", workload, [device])[:5]}
    # The same loops run; but threads that wait count too, so that two runs differ by a hundredth or two. The bar is the benchmark's.
    assert 0.9 < found["a run, tables to dense int8"].value < 1.1
    # 65,536 products: 16 of int8 an instruction at best, and no more than one each with all that is around them.
    assert 65_536 / 16 / 1e6 < found["a run, tables"].value < 65_536 / 1e6
    assert found["process and load, tables to dense int8"].value > 1
