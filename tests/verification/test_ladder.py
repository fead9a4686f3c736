from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from qn_deploy.errors import InputError
from qn_deploy.exporters.to_executorch import pte
from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.isolated import Run, RuntimeFailure
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST
from qn_deploy.program.program import Batch
from qn_deploy.verification import ladder
from qn_deploy.verification.judge import Check
from qn_deploy.verification.ladder import verify
from qn_deploy.weights import table_blob
from tests.verification.folders import Folder, failed, line, run_here
from tests.verification.planted import with_other_codes


@pytest.fixture
def good(build: Any, tmp_path: Path) -> Folder:
    assert build.export.code == 0, build.export.err
    return Folder(Path(shutil.copytree(build.folder, tmp_path / "copy")))


OFF = "model.onnx, optimizer off, to simulation"
ONNX = (
    (3, "model.onnx to integer reference"),
    (4, "model.onnx to model.pte"),
)


def test_a_good_build_passes_every_rung(good: Folder, here: None) -> None:
    stages: list[str] = []
    report = verify(good.path, progress=stages.append)
    assert report.passed
    assert stages == ["model.onnx on onnxruntime, model.pte on ExecuTorch XNNPACK"]
    assert [(check.rung, check.what, check.found, check.limit, check.passed) for check in report.checks if check.rung < 5] == [
        (1, "model.onnx: weights decode to the table", "3 of 3 tables", "exact", True),
        (1, "model.pte: weights decode to the table", "3 of 3 tables", "exact", True),
        (3, "model.onnx to integer reference", "bit-identical", "bit-identical", True),
        (3, "model.pte to integer reference", "bit-identical", "bit-identical", True),
        (4, "model.onnx, tables to dense weights", "bit-identical", "bit-identical", True),
        (4, "model.pte, tables to dense weights", "bit-identical", "bit-identical", True),
        (4, "model.stock.qnz to the dense program", "byte-identical", "byte-identical", True),
        (4, "model.onnx to model.pte", "bit-identical", "<= 1 step", True),
    ]
    losses = [check for check in report.checks if check.rung == 5]
    assert [check.what for check in losses] == [f"float model to simulation ({name})" for name in ("executorch", "onnx")]
    assert {(check.limit, check.passed) for check in losses} == {("reported", None)}


def test_min_sqnr_limits_the_loss_only(good: Folder, here: None) -> None:
    (loss,) = {check.found for check in verify(good.path).checks if check.rung == 5}
    decibel = float(loss.removeprefix("SQNR ").partition(" dB")[0])
    assert verify(good.path, min_sqnr_db=decibel - 0.1).passed
    report = verify(good.path, min_sqnr_db=decibel + 0.1)
    assert failed(report) == [(5, "float model to simulation (executorch)"), (5, "float model to simulation (onnx)")]


def test_rung_1_one_code(good: Folder, here: None) -> None:
    good.onnx("body.weight/codes", lambda codes: codes.flat.__setitem__(7, (codes.flat[7] + 1) % 4))
    report = verify(good.path)
    wrong = line(report, 1, "model.onnx: weights decode to the table")
    assert (wrong.found, wrong.passed) == ("2 of 3 tables; wrong: body.weight", False)
    assert line(report, 1, "model.pte: weights decode to the table").passed
    assert line(report, 4, "model.onnx, tables to dense weights").passed  # both are wrong alike


def test_rung_1_one_centroid(good: Folder, here: None) -> None:
    good.onnx("head.weight/centroids", lambda centroids: centroids.flat.__setitem__(0, centroids.flat[0] ^ 1))
    wrong = line(verify(good.path), 1, "model.onnx: weights decode to the table")
    assert (wrong.found, wrong.passed) == ("2 of 3 tables; wrong: head.weight", False)


def test_rung_1_one_code_of_the_pte(good: Folder, here: None) -> None:
    good.only("model.pte")
    data = (good.path / "model.pte").read_bytes()
    blob = max((blob for blob in pte.named_data(data).values() if table_blob.is_blob(blob)), key=len)
    good.write("model.pte", data.replace(blob, with_other_codes(blob)))
    (check,) = [check for check in verify(good.path).checks if check.rung == 1]
    assert check.passed is False
    assert check.what.startswith("model.pte: weights")


def test_rung_1_a_file_that_does_not_decode(good: Folder, here: None) -> None:
    good.only("model.pte")
    good.write("model.pte", b"no program at all")
    (check, *rest) = verify(good.path).checks
    assert (check.rung, check.what, check.limit, check.passed) == (1, "model.pte: weights", "decode", False)
    assert "no ExecuTorch program" in check.found
    assert {other.rung for other in rest} == {5}


def test_rung_3_a_bias(good: Folder, here: None) -> None:
    good.onnx("head.bias_snapped", lambda bias: bias.__setitem__(3, bias[3] + 3 * good.step))
    report = verify(good.path)
    assert failed(report) == list(ONNX)  # not rung 1: the weights are right; rung 4: model.pte still is right
    told = line(report, 2, OFF)  # the file is wrong, not what the runtime makes of it
    assert "3 steps, 10.00% of values" in told.found and told.passed is None


def test_rung_2_is_told_where_rung_3_fails_and_there_alone(good: Folder, here: None) -> None:
    def shift(tensors: dict[str, Tensor]) -> None:
        tensors["simulated/onnx/0"][0].add_(3 * good.step)

    good.golden(shift)  # flips grow in a deep network: the float simulation is no measure of a file that meets the reference
    report = verify(good.path)
    assert report.passed and not [check for check in report.checks if check.rung == 2]
    good.golden(lambda tensors: tensors["reference/onnx/0"][0, 0].add_(good.step))
    report = verify(good.path)
    told = line(report, 2, OFF)
    assert told.found.startswith("3 steps, 25.00% of values, SQNR ")
    assert (told.limit, told.passed) == ("told where rung 3 fails: far off, the file is wrong, else the runtime", None)


def test_rung_3_is_exact_where_every_operator_is(good: Folder, here: None) -> None:
    good.golden(lambda golden: golden["reference/onnx/0"][0, 0].add_(good.step))
    report = verify(good.path)
    assert failed(report) == [(3, "model.onnx to integer reference")]
    assert line(report, 3, ONNX[0][1]).found.startswith("1 step, 2.50% of values, SQNR ")


def test_rung_3_is_a_ratio_where_an_operator_is_not_exact(good: Folder, here: None) -> None:
    good.set(inexact=["softmax"])

    def add_noise(decibel: float) -> Callable[[dict[str, Tensor]], None]:
        def change(golden: dict[str, Tensor]) -> None:
            clean = golden["input/0"].new_tensor(simulated)
            noise = clean.sign() * clean.norm() / clean.numel() ** 0.5 * 10 ** (-decibel / 20)
            noisy = clean + noise  # keeps the order within a row nearly everywhere; the ratio is exact
            golden.update({"reference/onnx/0": noisy, "reference/executorch/0": noisy.clone(), "float/0": noisy * (1 + 10 ** (-loss / 20))})

        return change

    loss = 30.0  # in dB; where it is larger, the runtime may be further off

    simulated = safetensors.torch.load((good.path / GOLDEN).read_bytes())["reference/onnx/0"].tolist()
    good.golden(add_noise(45))
    report = verify(good.path)
    assert report.passed
    for name in ("model.onnx", "model.pte"):
        assert line(report, 3, f"{name}: operators without an exact rule").found == "softmax"
    good.golden(add_noise(35))
    report = verify(good.path)
    assert [rung for rung, _ in failed(report)] == [3, 3]
    twins = line(report, 4, "model.onnx to model.pte")  # they are compared by steps only where both are exact
    assert (twins.limit, twins.passed) == ("reported: operators without an exact rule", None)
    assert line(report, 3, ONNX[0][1]).limit == "SQNR >= 40 dB"
    loss = 12.0
    good.golden(add_noise(35))
    report = verify(good.path)
    assert not failed(report)
    assert re.match(r"SQNR >= 33.9 dB: a tenth of the error of quantization", line(report, 3, ONNX[0][1]).limit)
    good.golden(add_noise(32))
    assert [rung for rung, _ in failed(verify(good.path))] == [3, 3]


def test_nan_on_one_side_is_no_agreement(good: Folder, here: None) -> None:
    def all_nan(*kinds: str) -> Callable[[dict[str, Tensor]], None]:
        return lambda golden: golden.update({name: value * torch.nan for name, value in golden.items() if name.startswith(kinds)})

    good.golden(all_nan("reference/", "float/"))
    rungs = [check.rung for check in verify(good.path, min_sqnr_db=-1e9).checks if check.passed is False]
    assert rungs == [3, 3, 5, 5]
    good.golden(all_nan("simulated/"))
    with pytest.raises(InputError, match="holds no multiples of it"):
        verify(good.path)


def test_a_step_that_is_not_the_files_is_refused(good: Folder) -> None:
    step = good.step
    for wrong in (1e30, 2 * step, step * 1.5, 1e-30):
        good.set(steps=[wrong])
        with pytest.raises(InputError, match="holds no multiples of it"):
            verify(good.path)


def test_a_program_that_was_taken_out_of_the_manifest_is_refused(good: Folder) -> None:
    whole = (good.path / "model.pte").read_bytes()
    good.only("model.onnx")
    good.write("model.onnx", (good.path / "model.onnx").read_bytes())
    (good.path / "model.pte").write_bytes(whole)
    with pytest.raises(InputError, match=r"model\.pte is not in the manifest, and would not be checked"):
        verify(good.path)


def test_vectors_of_a_program_that_was_taken_out_are_refused(good: Folder) -> None:
    good.manifest(lambda data: data["files"].pop("model.pte"))
    (good.path / "model.pte").unlink()
    with pytest.raises(InputError, match="holds vectors of a file that the manifest does not list"):
        verify(good.path)


def test_a_table_that_the_manifest_does_not_list_is_told(good: Folder, here: None) -> None:
    """A weight that was taken out, or is called int8, which no rung looks at."""
    whole = (good.path / MANIFEST).read_bytes()
    int8 = {"kind": "int8", "parts": [], "block_size": None, "codebooks": None, "centroids": None}
    for change in (lambda data: data["weights"].pop("body.weight"), lambda data: data["weights"]["body.weight"].update(int8)):
        (good.path / MANIFEST).write_bytes(whole)
        good.manifest(change)
        told = [check for check in verify(good.path).checks if "tables that the manifest does not list" in check.what]
        assert [(check.found, check.passed) for check in told] == [("1 of 3", False)] * 2


def test_garbage_with_the_right_hashes_is_a_line_of_the_report(good: Folder, here: None) -> None:
    for name in ("model.onnx", "model.pte"):
        good.write(name, b"\x08\x07garbage" * 50)
    wrong = [check for check in verify(good.path).checks if check.passed is False]
    assert [(check.what, "\n" in check.found) for check in wrong] == [("model.onnx: weights", False), ("model.pte: weights", False)]


def test_rung_4_dense_weights(good: Folder, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (good.path / "model.onnx").read_bytes()
    good.onnx("head.bias_snapped", lambda bias: bias.__setitem__(3, bias[3] + good.step))
    other = (good.path / "model.onnx").read_bytes()
    good.write("model.onnx", whole)
    monkeypatch.setattr(type(find_exporters()["onnx"]), "dense", staticmethod(lambda data, parts: other))
    assert failed(verify(good.path)) == [(4, "model.onnx, tables to dense weights")]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda output: output[:, :9], "float32 [4, 10]"),
        (lambda output: output.double(), "float32 [4, 10]"),
    ],
)
def test_outputs_of_another_form_fail(good: Folder, here: None, change: Callable[[Tensor], Tensor], found: str) -> None:
    good.golden(lambda golden: golden.update({"reference/onnx/0": change(golden["reference/onnx/0"])}))
    report = verify(good.path)
    assert failed(report) == [ONNX[0]]
    assert line(report, 3, ONNX[0][1]).found == found
    assert line(report, 3, ONNX[0][1]).limit != found


@pytest.mark.parametrize("kept", ["dense", "folded"])
def test_what_was_not_written_as_a_table_on_purpose_is_named_and_not_wrong(good: Folder, here: None, kept: str) -> None:
    good.onnx("body.weight/codes", lambda codes: codes.flat.__setitem__(7, (codes.flat[7] + 1) % 4))
    good.manifest(lambda data: data["files"]["model.onnx"].update({kept: ["body.weight"]}))
    check = line(verify(good.path), 1, "model.onnx: weights decode to the table")
    said = {"dense": "stored dense", "folded": "folded into a constant"}[kept]
    assert (check.found, check.passed) == (f"2 of 2 tables; {said}: body.weight", True)


def test_nothing_compressed_is_no_success(good: Folder, here: None) -> None:
    good.manifest(lambda data: data.update(weights={}))
    files = [(1, f"{name}: tables that the manifest does not list") for name in ("model.onnx", "model.pte")]
    assert failed(verify(good.path)) == [*files, (1, "compressed weights")]


def test_files_of_several_schemes_lie_side_by_side(good: Folder, here: None) -> None:
    """Each is compared with what belongs to it: the float one with the simulation, and not with the static one."""
    good.manifest(lambda data: data["files"]["model.pte"].update(activations="none", steps=[None]))
    good.golden(lambda golden: golden.pop("reference/executorch/0"))
    report = verify(good.path)
    assert [check.what for check in report.checks if check.rung == 3] == ["model.onnx to integer reference", "model.pte to simulation"]
    assert not [check for check in report.checks if check.what == "model.onnx to model.pte"]


@pytest.mark.parametrize("crash", [0, 1])
def test_a_runtime_that_crashes_is_a_line_of_the_report(good: Folder, here: None, monkeypatch: pytest.MonkeyPatch, crash: int) -> None:
    def run_and_crash(exporter: str, runs: tuple[Run, ...], inputs: Batch) -> tuple[Batch | RuntimeFailure, ...]:
        failure = RuntimeFailure("the runtime crashed with SIGSEGV")
        return tuple(failure if index == crash else result for index, result in enumerate(run_here(exporter, runs, inputs)))

    monkeypatch.setattr(ladder, "run_isolated", run_and_crash)
    good.only("model.onnx")
    report = verify(good.path)
    (line,) = [check for check in report.checks if check.passed is False]
    what = ("model.onnx to integer reference", "model.onnx, tables to dense weights")
    assert line == Check(3 + crash, what[crash], "the runtime crashed with SIGSEGV", "runs", False)
    assert not report.passed


def test_a_changed_file_is_told_by_its_hash(good: Folder) -> None:
    for name in ("model.onnx", "model.pte", GOLDEN):
        data = (good.path / name).read_bytes()
        (good.path / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(InputError, match=rf"{name} is not the file that was exported.*Export the model again"):
            verify(good.path)
        (good.path / name).unlink()
        with pytest.raises(InputError, match=rf"{name} can't be read \(No such file.*; the manifest lists it. Export the model again"):
            verify(good.path)
        (good.path / name).write_bytes(data)


def test_golden_vectors_must_be_whole(good: Folder) -> None:
    def without(name: str) -> Callable[[dict[str, Tensor]], None]:
        return lambda golden: golden.__delitem__(name)

    whole = (good.path / GOLDEN).read_bytes()
    for name in ("simulated/onnx/0", "float/0"):
        good.golden(without(name))
        with pytest.raises(InputError, match=rf"does not hold {name[:-2]} for each of the 1 outputs; export the model again"):
            verify(good.path)
        good.write(GOLDEN, whole)
    good.write(GOLDEN, b"no tensors")
    with pytest.raises(InputError, match=r"golden\.safetensors is damaged .*export the model again"):
        verify(good.path)


def test_a_folder_that_is_no_build(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no manifest\.json.*Write one: qn-deploy export model\.pt"):
        verify(tmp_path)
    with pytest.raises(InputError, match=r"nowhere holds no manifest\.json"):
        verify(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file holds no manifest\.json"):
        verify(tmp_path / "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"[]", "is no manifest of qn-deploy"),
        (b"{}", "is no manifest of qn-deploy"),
        (b'{"format": "qn-deploy build"}', "has version None, this qn-deploy reads version 5"),
        (b'{"format": "qn-deploy build", "version": 1}', "has version 1, this qn-deploy reads version 5"),
        (b'{"format": "qn-deploy build", "version": 5}', "is damaged"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(InputError, match=f"manifest.json {message}"):
        verify(tmp_path)


KINDS = {"files": dict, "inputs": list, "outputs": list, "weights": dict, "golden_sha256": str, "activations": str, "config": dict}
WRONG = [(key, value) for key, kind in KINDS.items() for value in (None, 5, "text", [5], {"x": 5}) if not isinstance(value, kind)]


@pytest.mark.parametrize(("key", "value"), WRONG, ids=str)
def test_a_manifest_with_a_value_of_another_kind_is_refused(good: Folder, here: None, key: str, value: object) -> None:
    good.manifest(lambda data: data.update({key: value}))
    with pytest.raises(InputError, match=r"[Ee]xport the model again"):
        verify(good.path)


@pytest.mark.parametrize(
    ("key", "value"), [("steps", []), ("steps", None), ("activations", "x"), ("inexact", "add"), ("dense", {}), ("folded", 1)]
)
def test_an_entry_that_decides_how_strict_the_rungs_are_is_checked(good: Folder, here: None, key: str, value: object) -> None:
    good.set(**{key: value})
    with pytest.raises(InputError, match=r"manifest\.json is damaged .*export the model again"):
        verify(good.path)


def test_a_manifest_with_unknown_or_missing_keys_is_refused(good: Folder) -> None:
    good.manifest(lambda data: data.update(surprise=1))
    with pytest.raises(InputError, match=r"is damaged \(.*surprise.*export the model again"):
        verify(good.path)
    good.manifest(lambda data: (data.pop("surprise"), data.pop("weights")))
    with pytest.raises(InputError, match=r"is damaged \(it has no 'weights'\)"):
        verify(good.path)


def test_an_exporter_that_is_not_installed_is_named(good: Folder) -> None:
    good.only("model.onnx")
    good.manifest(lambda data: data["files"]["model.onnx"].update(exporter="coreml"))
    with pytest.raises(InputError, match=r"model\.onnx was written by the exporter 'coreml', which is not installed here"):
        verify(good.path)
