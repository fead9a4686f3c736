from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result

from qn_deploy.cli import main
from qn_deploy.errors import InputError
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.manifest import MANIFEST, read_manifest
from qn_deploy.verification import ladder
from qn_deploy.verification.devices import find
from qn_deploy.verification.judge import Check
from qn_deploy.verification.report import Report

COMMAND = Path(sys.executable).with_name("qn-deploy")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="qn-deploy")


def refusal(result: Result) -> str:
    """The one line that a user sees when the input is at fault."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_help_answers_at_once() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)  # of the processor: other tests may run beside this one
        subprocess.run([COMMAND, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["export", "--help"], ["verify", "-h"], ["export", "m.pt", "--target", "vax"]]
)
def test_help_imports_no_heavy_library(arguments: list[str]) -> None:
    script = f"""if True:
        import sys
        from qn_deploy.cli import main
        try:
            main({arguments!r})
        except SystemExit:
            pass
        heavy = {{"torch", "numpy", "onnx", "onnxruntime", "executorch", "rich", "safetensors", "sklearn"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)


def test_version() -> None:
    assert run("--version").output.startswith("qn-deploy, version ")


def stages(text: str) -> list[str]:
    """The stage lines of standard error, without their seconds; nothing else may stand there."""
    lines = text.splitlines()
    assert all(line.startswith("  ") and line.endswith(" s)") for line in lines), text
    return [line.strip().rpartition(" (")[0] for line in lines]


def test_export_writes_a_build_and_tells_its_stages(model: Any, build: Any) -> None:
    assert build.export.code == 0, build.export.err
    assert sorted(path.name for path in build.folder.iterdir()) == [
        "golden.safetensors",
        "manifest.json",
        "model.onnx",
        "model.pte",
        "model.stock.qnz",
        "report.html",
    ]
    assert stages(build.export.err) == [
        f"reading {model.path}",
        *[f"writing {name}" for name in ("model.pte", "model.onnx")],
        "running the simulated program",
        "running each file once",
        f"saving to {build.folder}",
        "drawing report.html",
    ]
    for entry in read_manifest(build.folder).files.values():
        assert entry.runtime in build.export.out
    assert build.export.out.splitlines()[-1] == f"next: qn-deploy verify {build.folder}"


@pytest.mark.slow
def test_verify_passes_on_the_real_runtimes(build: Any) -> None:
    done = subprocess.run([COMMAND, "verify", build.folder, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert stages(done.stderr) == [f"reading {build.folder}", "model.onnx on onnxruntime, model.pte on ExecuTorch XNNPACK"]
    report = json.loads(done.stdout)
    assert sorted(report) == ["checks", "folder", "passed"]
    assert (report["folder"], report["passed"]) == (str(build.folder), True)
    assert [check["rung"] for check in report["checks"]] == [1, 1, 3, 3, 4, 4, 4, 4, 5, 5]
    assert all(sorted(check) == ["found", "limit", "passed", "rung", "what"] for check in report["checks"])


def test_export_tells_what_to_set_and_the_same_model_gives_the_same_bytes(model: Any, build: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    result = run("export", model.path, "--target", "x86", "--only", "onnx", "--out", folder)
    assert result.exit_code == 0, result.output
    assert "session.x64quantprecision 1, on x86 processors without VNNI" in " ".join(result.stdout.split())
    assert result.stdout.splitlines()[-1] == f"next: qn-deploy verify '{folder}'"
    assert sorted(path.name for path in folder.iterdir()) == ["golden.safetensors", "manifest.json", "model.onnx", "report.html"]
    assert (folder / "model.onnx").read_bytes() == (build.folder / "model.onnx").read_bytes()


@pytest.mark.slow
def test_options_of_export_reach_the_exporters(model: Any, tmp_path: Path) -> None:
    result = run("export", model.path, "--only", "onnx", "--out", tmp_path, "--shell", "--centroid-range", "64", "--allow-unfused")
    assert result.exit_code == 0, result.output
    assert {"model.shell.onnx", "model.shell.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert "model.shell.onnx" in result.stdout  # in the table of files, which a narrow terminal folds
    assert "VNNI" not in result.stdout
    verified = run("verify", tmp_path, "--json")
    checks = {check["what"]: check["found"] for check in json.loads(verified.stdout)["checks"]}
    assert checks["model.shell.onnx, model.shell.safetensors to the dense program"] == "byte-identical"
    assert verified.exit_code == 0


def test_unpack_rebuilds_the_stock_program(build: Any, tmp_path: Path) -> None:
    result = run("unpack", build.folder / "model.stock.qnz", "--out", tmp_path / "model.pte")
    assert result.exit_code == 0, result.output
    stock = (tmp_path / "model.pte").read_bytes()
    assert stock == find_exporters()["executorch"].dense((build.folder / "model.pte").read_bytes())
    assert f"model.pte: {len(stock):,} bytes from" in result.stdout
    told = json.loads(run("unpack", build.folder / "model.stock.qnz", "--out", tmp_path / "model.pte", "--json").stdout)
    size = (build.folder / "model.stock.qnz").stat().st_size
    assert told == {"out": str(tmp_path / "model.pte"), "bytes": len(stock), "container_bytes": size}
    damaged = tmp_path / "damaged.qnz"
    damaged.write_bytes((build.folder / "model.stock.qnz").read_bytes()[:-1])
    result = run("unpack", damaged, "--out", tmp_path / "model.pte")
    assert (result.exit_code, result.stderr.startswith(f"Error: {damaged}: stock form: piece ")) == (2, True)
    assert (tmp_path / "model.pte").read_bytes() == stock
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged.qnz", "model.pte"]


def test_a_cache_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = run("devices", "setup", "qemu")
    assert result.exit_code == 2
    assert "Error: " in result.stderr and "Not a directory; TMPDIR and XDG_CACHE_HOME choose other folders" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_the_graph_form_is_exported_and_verified(model: Any, tmp_path: Path) -> None:
    result = run("export", model.path, "--only", "executorch", "--out", tmp_path, "--executorch-form", "graph")
    assert result.exit_code == 0, result.output
    assert read_manifest(tmp_path).files["model.pte"].facts == {"form": "graph"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["golden.safetensors", "manifest.json", "model.pte", "report.html"]
    verified = run("verify", tmp_path, "--json")
    assert verified.exit_code == 0, verified.output


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Check]:
    """What verification finds, instead of a climb; the arguments are kept in `limits`."""
    checks: list[Check] = [Check(1, "model.onnx: weights", "1 of 1 tables", "exact", True)]
    manifest = SimpleNamespace(config=ExportConfig("x86"))

    def climb(folder: Path, min_sqnr_db: float | None, devices: tuple[str, ...], model: object, progress: object) -> Report:
        checks.append(Check(5, "loss", "SQNR 7.0 dB", f"limit {min_sqnr_db}", None))
        return Report(str(folder), manifest, tuple(checks))  # type: ignore[arg-type]

    monkeypatch.setattr(ladder, "verify", climb)
    return checks


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_verify_exits_with_1_if_a_check_failed(found: list[Check], json_flag: list[str]) -> None:
    assert run("verify", "somewhere", "--min-sqnr", "30", *json_flag).exit_code == 0
    assert found[-1].limit == "limit 30.0"
    found.append(Check(3, "model.onnx to [simulation]", "2 steps", "<= 1 step", False))
    result = run("verify", "somewhere", *json_flag)
    assert result.exit_code == 1
    assert found[-1].limit == "limit None"
    if json_flag:
        assert json.loads(result.stdout)["passed"] is False
    else:
        assert "FAIL" in result.stdout
        assert "1 check failed" in result.stdout


@pytest.mark.parametrize(
    ("target", "machine", "ready", "command"),
    [
        ("x86", "aarch64", ("adb:pixel",), ""),
        ("arm", "aarch64", ("adb:pixel",), ""),
        ("arm", "x86_64", ("cpu", "qemu:cortex-a76", "adb:pixel"), "qn-deploy verify 'a build' --device adb:pixel"),
        ("arm", "x86_64", ("cpu", "qemu:cortex-a53", "qemu:cortex-a76"), "qn-deploy verify 'a build' --device qemu:cortex-a76"),
        ("arm", "x86_64", ("cpu",), "qn-deploy devices setup qemu"),
    ],
)
def test_verify_names_the_device_that_stands_for_the_target(
    monkeypatch: pytest.MonkeyPatch, target: str, machine: str, ready: tuple[str, ...], command: str
) -> None:
    monkeypatch.setattr(find.platform, "machine", lambda: machine)
    monkeypatch.setattr(find, "list_devices", lambda: tuple(find.Found(name, True, "") for name in ready))
    assert find.next_device(target, Path("a build")) == command


def test_targets_say_what_they_decide() -> None:
    result = run("targets")
    assert result.exit_code == 0
    assert {"arm", "x86", "VNNI:", "qemu"} <= set(result.stdout.split())


def test_what_is_no_container_is_refused(build: Any, tmp_path: Path) -> None:
    line = refusal(run("unpack", build.folder / "model.onnx", "--out", tmp_path / "model.pte"))
    assert "model.onnx is no container of the installed exporters (executorch, onnx), or its beginning is damaged" in line
    assert not list(tmp_path.iterdir())


def test_inspect_shows_each_weight(model: Any) -> None:
    result = run("inspect", model.path)
    assert result.exit_code == 0, result.output
    for name, weight in model.program.weights.items():
        (row,) = [line for line in result.stdout.splitlines() if line.startswith("│") and name in line]
        assert "table" in row
        assert f"{weight.nbytes} B" in row


def pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path)


def old_pickled(path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("command", ["export", "inspect"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "cannot read {path}: No such file or directory"),
        (lambda path: path.mkdir(), "cannot read {path}: Is a directory"),
        (lambda path: path.write_bytes(b""), "{path}: is empty"),
        (lambda path: path.write_bytes(b"hello\n" * 50), "{path}: is no program of qn-deploy"),
        (lambda path: path.write_bytes(b"PK\3\4" + bytes(100)), "{path}: is damaged or cut short"),
        (pickled, "{path}: is a torch.save checkpoint"),
        (old_pickled, "{path}: is a pickle or an old torch.save file"),
    ],
    ids=["missing", "directory", "empty", "text", "damaged", "checkpoint", "old checkpoint"],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, command: str, make: Any, message: str) -> None:
    path = tmp_path / "model.pt"
    make(path)
    assert refusal(run(command, path)).startswith("Error: " + message.format(path=path))
    assert not (tmp_path / "build").exists()


@pytest.mark.slow
def test_a_refusal_is_one_line_in_a_real_process_too(tmp_path: Path) -> None:
    pickled(tmp_path / "model.pt")
    done = subprocess.run([COMMAND, "export", tmp_path / "model.pt"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Error: {tmp_path / 'model.pt'}: is a torch.save checkpoint")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "m.pt", "--target", "vax"], "Error: Invalid value for '--target': 'vax' is not one of 'arm', 'x86'."),
        (["export", "m.pt", "--activations", "int4"], "Error: Invalid value for '--activations': 'int4' is not one of"),
        (["export"], "Error: Missing argument 'SOURCE'. See qn-deploy export --help"),
        (["verify", "build", "--min-sqnr", "high"], "Error: Invalid value for '--min-sqnr': 'high' is not a valid float."),
        (["deploy"], "Error: No such command 'deploy'"),
    ],
)
def test_wrong_usage_is_told_in_the_last_line(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in result.output


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


def test_a_model_with_convolutions_and_no_calibration_is_told_what_to_do(model: Any, tmp_path: Path) -> None:
    for extra in ([], ["--activations", "dynamic"]):
        line = refusal(run("export", model.uncalibrated, "--out", tmp_path / "build", *extra))
        assert "the model has 2 convolutions" in line
        assert "--calibrate data.npz" in line
        assert "--activations none" in line
    line = refusal(run("export", model.uncalibrated, "--out", tmp_path / "build", "--activations", "static"))
    assert "static int8 activations need calibration data" in line
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("way", ["none", "calibrate"])
def test_and_that_works(model: Any, tmp_path: Path, way: str) -> None:
    np.savez(tmp_path / "data.npz", image=np.random.default_rng(0).standard_normal((5, 1, 8, 8), np.float32))
    options = ["--activations", "none"] if way == "none" else ["--calibrate", tmp_path / "data.npz"]
    result = run("export", model.uncalibrated, "--out", tmp_path / "build", "--only", "onnx", *options)
    assert result.exit_code == 0, result.output
    assert read_manifest(tmp_path / "build").activations == ("none" if way == "none" else "static")
    session = onnxruntime.InferenceSession(tmp_path / "build/model.onnx")
    (logits,) = session.run(None, {"image": np.zeros((3, 1, 8, 8), np.float32)})
    assert logits.shape == (3, 10)


def test_an_exporter_that_is_not_installed_is_named(model: Any, tmp_path: Path) -> None:
    line = refusal(run("export", model.path, "--only", "onnx", "--only", "nonsense", "--out", tmp_path / "build"))
    assert line == "Error: no exporter named nonsense is installed; there are executorch, onnx"
    assert not (tmp_path / "build").exists()


@pytest.mark.parametrize("out", ["file", "taken"])
def test_a_folder_that_cannot_be_written_is_named(model: Any, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "taken/model.onnx").mkdir(parents=True)
    result = run("export", model.path, "--only", "onnx", "--out", tmp_path / out)
    assert result.exit_code == 2
    assert result.stdout == ""
    *before, last = result.stderr.splitlines()
    stages("\n".join(before))
    assert last.startswith("Error: ")
    assert str(tmp_path / out) in last
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "taken" / MANIFEST).exists()


def test_the_demo_names_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    result = run("demo", "--out", tmp_path / "file/demo")
    assert refusal(result) == f"Error: {tmp_path / 'file/demo'} can't be made: Not a directory; choose another folder with --out"


def test_verify_refuses_what_is_no_build(build: Any, tmp_path: Path) -> None:
    assert "holds no manifest.json" in refusal(run("verify", tmp_path))
    assert "holds no manifest.json" in refusal(run("verify", tmp_path / "nowhere"))
    folder = Path(shutil.copytree(build.folder, tmp_path / "build"))
    (folder / "model.onnx").write_bytes(b"changed")
    assert "model.onnx is not the file that was exported" in refusal(run("verify", folder))
    (folder / MANIFEST).write_text("{")
    assert "manifest.json is damaged" in refusal(run("verify", folder, "--json"))


def test_only_errors_about_the_input_become_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(error: Exception) -> None:
        def climb(*arguments: object) -> None:
            raise error

        monkeypatch.setattr(ladder, "verify", climb)

    raising(InputError("this and that"))
    assert refusal(run("verify", "somewhere")) == "Error: this and that"
    raising(ZeroDivisionError("a bug of ours"))
    assert isinstance(run("verify", "somewhere").exception, ZeroDivisionError)
