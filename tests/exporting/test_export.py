from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qn_deploy.errors import ExportError, InputError
from qn_deploy.exporting import export as build
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.describe import describe_weights
from qn_deploy.exporting.export import export
from qn_deploy.exporting.exporter import NoOptions, Written, find_exporters
from qn_deploy.exporting.manifest import Manifest, read_manifest
from qn_deploy.lowering.lower import Activations, Form, Lowered, lower
from qn_deploy.lowering.rules import ONNXRUNTIME
from qn_deploy.program.archive import program_from_bytes, program_to_bytes
from qn_deploy.program.program import Program
from qn_deploy.recipe import Int4, conv_net
from qn_deploy.targets import Target
from qn_deploy.weights.compressed import IntWeight, PQWeight
from qn_deploy.weights.packing import code_rows

Programs = Callable[[str], Program]
FILES = ["golden.safetensors", "manifest.json", "model.onnx", "model.pte", "model.stock.qnz"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def program(programs: Programs) -> Program:
    return replace(programs("residual"), recipe=conv_net(16), left={"stem.weight": "int8: a table takes more bytes"})


@pytest.fixture(scope="module")
def folder(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build") / "new" / "folder"
    export(program, folder)
    return folder


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


def test_the_folder_holds_the_files_that_the_manifest_names(folder: Path, manifest: Manifest) -> None:
    found = contents(folder)
    assert list(found) == FILES
    assert {name: (entry.bytes, entry.sha256) for name, entry in manifest.files.items()} == {
        name: (len(found[name]), sha256(found[name])) for name in ("model.onnx", "model.pte")
    }
    assert manifest.golden_sha256 == sha256(found["golden.safetensors"])


def test_every_form_of_a_weight_is_described(program: Program) -> None:
    table = program.weights["first.weight"]
    assert isinstance(table, PQWeight)
    int4 = IntWeight.from_float(torch.tensor([[1.0, -2.0], [0.5, 0.0]]), method=Int4())
    weights = {"a": replace(table, residual=table), "b": int4, "c": IntWeight.from_float(torch.ones(2, 2))}
    found = describe_weights(replace(program, weights=weights))
    assert [(entry.kind, entry.residual, entry.is_table, len(entry.parts)) for entry in found.values()] == [
        ("table", 16, True, 4),
        ("int4", 0, True, 2),
        ("int8", 0, False, 0),
    ]
    assert found["b"].sha256 == sha256(int4.values.numpy().tobytes())
    assert found["b"].bytes == 2 + 8


def test_the_manifest_says_what_a_user_has_to_know(program: Program, manifest: Manifest) -> None:
    assert (manifest.config, manifest.activations) == (ExportConfig(), "static")
    assert [(entry.name, entry.dtype, entry.shape) for entry in manifest.inputs] == [("x", "float32", (None, 3, 12, 12))]
    (output,) = manifest.outputs
    assert (output.name, output.dtype, output.shape) == ("output", "float32", (None, 10))
    assert manifest.recipe == json.loads(conv_net(16).to_json())
    assert manifest.left == program.left
    assert {(entry.activations, entry.inexact, entry.folded) for entry in manifest.files.values()} == {("static", (), ())}
    assert {name: entry.dense for name, entry in manifest.files.items()} == {"model.onnx": (), "model.pte": ("second.weight",)}
    assert manifest.versions.keys() >= {"qn-deploy", "torch", "onnxruntime", "executorch"}
    table = manifest.weights["second.weight"]
    assert (table.kind, table.shape, table.block_size, table.codebooks, table.centroids) == ("table", (16, 16, 1, 1), 4, 4, 16)
    weight = program.weights["second.weight"]
    assert isinstance(weight, PQWeight)
    assert table.sha256 == sha256(weight.int8().numpy().tobytes())
    assert table.parts == (sha256(code_rows(weight).numpy().tobytes()), sha256(weight.centroids.numpy().tobytes()))


def test_the_golden_vectors_are_those_of_the_program(program: Program, folder: Path, manifest: Manifest) -> None:
    golden = load_file(folder / "golden.safetensors")
    assert set(golden) == {"input/0", "float/0", "simulated/onnx/0", "simulated/executorch/0", "reference/onnx/0", "reference/executorch/0"}
    assert torch.equal(golden["input/0"], program.golden.inputs[0])
    assert torch.equal(golden["float/0"], program.golden.outputs[0])
    ((step,),) = {entry.steps for entry in manifest.files.values()}
    assert step is not None
    for name in ("reference/onnx/0", "simulated/onnx/0"):  # whole steps
        assert ((golden[name] / step) - (golden[name] / step).round()).abs().max() < 1e-3
    for name, exporter in find_exporters().items():
        (found,) = exporter.run((folder / exporter.filename).read_bytes(), (program.golden.inputs,))[0]
        assert torch.equal(found, golden[f"reference/{name}/0"])


def test_theoretical_and_float_bytes_by_hand(program: Program, manifest: Manifest) -> None:
    biases = 4 * (16 + 16 + 16 + 10)
    stem = 16 * 27 + 4 * 16
    first = 16 * 16 // 2 + 16 * 9 + 4 * 16
    second = 16 * 4 // 2 + 4 * 16 * 4 + 4 * 16
    classifier = 10 * 4 // 2 + 16 * 4 + 4 * 10
    assert manifest.theoretical_bytes == biases + stem + first + second + classifier
    assert manifest.float_bytes == biases + 4 * (16 * 27 + 16 * 16 * 9 + 16 * 16 + 10 * 16)


def test_the_files_stay_within_the_bar(manifest: Manifest) -> None:
    assert all(entry.bytes <= 1.05 * manifest.theoretical_bytes + 24 * 1024 for entry in manifest.files.values())


@pytest.mark.slow
def test_the_same_program_gives_the_same_bytes_of_every_file(program: Program, folder: Path, tmp_path: Path) -> None:
    loaded = program_from_bytes(program_to_bytes(program))
    export(loaded, tmp_path)
    found, expected = contents(tmp_path), contents(folder)
    assert [name for name in FILES if found[name] != expected[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [False, True])
def test_a_tied_weight_counts_once(programs: Programs, tmp_path: Path, loaded: bool) -> None:
    program = programs("tied")
    program = program_from_bytes(program_to_bytes(program)) if loaded else program
    manifest = export(program, tmp_path, ExportConfig(activations="dynamic", only=("onnx",))).manifest
    assert manifest.theoretical_bytes == 64 * 4 // 2 + 16 * 8 + 4 + 4 * 64  # codes, centroids, one scale, bias
    assert manifest.float_bytes == 4 * (64 * 32 + 64)
    assert list(manifest.weights) == ["embed.weight"]
    assert manifest.files["model.onnx"].steps == (None,)
    assert set(load_file(tmp_path / "golden.safetensors")) == {"input/0", "float/0", "simulated/onnx/0"}


class Stub:
    """An exporter as a plugin would bring one."""

    runtime = "none"
    rules = ONNXRUNTIME
    optimizes = False
    options = NoOptions

    def __init__(self, filename: str, data: bytes | None, activations: Activations = Activations.STATIC, baked: bool = False) -> None:
        self.filename, self.data, self.form = filename, data, Form(activations, baked=baked)
        self.lowered: tuple[Lowered, ...] = ()

    def forms(self, activations: Activations, options: NoOptions) -> tuple[Form, ...]:
        return (self.form,)

    def write(self, program: Program, lowered: tuple[Lowered, ...], options: NoOptions, target: Target) -> Written:
        if self.data is None:
            raise ExportError("layer 3 has no form here")
        self.lowered = lowered
        return Written(self.data, lowered[0])


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Stub]:
    """Two exporters in place of the installed ones; the second fails. Their files run nowhere."""
    stubs = {"good": Stub("model.onnx", b"a new program"), "broken": Stub("model.broken", None)}
    monkeypatch.setattr(build, "find_exporters", lambda: stubs)
    monkeypatch.setattr(build, "try_files", lambda *_: None)
    return stubs


def test_a_failing_exporter_leaves_the_earlier_build_as_it_was(
    program: Program, folder: Path, tmp_path: Path, stubs: dict[str, Stub]
) -> None:
    for name, data in contents(folder).items():
        (tmp_path / name).write_bytes(data)
    stages: list[str] = []
    with pytest.raises(ExportError, match="layer 3 has no form here"):
        export(program, tmp_path, ExportConfig("x86"), progress=stages.append)
    assert stages == ["writing model.onnx", "writing model.broken"]
    assert contents(tmp_path) == contents(folder)


def test_what_only_the_build_before_had_is_removed_and_nothing_else(program: Program, tmp_path: Path, stubs: dict[str, Stub]) -> None:
    (tmp_path / "model.pt").write_text("precious")
    stubs["broken"].data = b"as well"
    export(program, tmp_path)
    assert sorted(contents(tmp_path)) == ["golden.safetensors", "manifest.json", "model.broken", "model.onnx", "model.pt"]
    export(program, tmp_path, ExportConfig(only=("good",)))
    assert sorted(contents(tmp_path)) == ["golden.safetensors", "manifest.json", "model.onnx", "model.pt"]


def test_a_third_exporter_takes_part_like_the_built_in_ones(program: Program, tmp_path: Path, stubs: dict[str, Stub]) -> None:
    manifest = export(program, tmp_path, ExportConfig(only=("good",))).manifest
    assert manifest.files["model.onnx"].exporter == "good"
    assert (tmp_path / "model.onnx").read_bytes() == b"a new program"


def test_an_unknown_exporter_and_a_folder_that_cannot_be_made_are_named(program: Program, tmp_path: Path, stubs: dict[str, Stub]) -> None:
    with pytest.raises(InputError, match="no exporter named coreml is installed; there are good, broken"):
        export(program, tmp_path, ExportConfig(only=("coreml", "good")))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/build can't be made: file is a file; choose another folder with --out"):
        export(program, tmp_path / "file" / "build", ExportConfig(only=("good",)))
    assert (tmp_path / "file").read_text() == ""


def test_exporters_are_found_in_the_order_of_their_names() -> None:
    assert list(find_exporters()) == ["executorch", "onnx"]
    assert {exporter.filename for exporter in find_exporters().values()} == {"model.onnx", "model.pte"}


def test_each_form_is_lowered_once(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[Form] = []

    def counted(program: Program, form: Form, dense: dict[str, torch.Tensor]) -> Lowered:
        forms.append(form)
        return lower(program, form, dense)

    monkeypatch.setattr(build, "lower", counted)
    none = Activations.NONE
    stubs = {"a": Stub("a", b"a", none), "b": Stub("b", b"b", none), "c": Stub("c", b"c", none, baked=True)}
    monkeypatch.setattr(build, "find_exporters", lambda: stubs)
    monkeypatch.setattr(build, "try_files", lambda *_: None)
    export(program, tmp_path)
    assert forms == [Form(none), Form(none, baked=True)]
    assert stubs["a"].lowered[0] is stubs["b"].lowered[0]


@pytest.mark.slow
def test_activations_are_chosen_by_the_program_and_what_exporters_take(program: Program, programs: Programs, tmp_path: Path) -> None:
    def chosen(program: Program, config: ExportConfig) -> str:
        return export(program, tmp_path, config).manifest.activations

    graph = ExportConfig(only=("executorch",), options={"executorch": {"form": "graph"}})
    assert chosen(program, ExportConfig(only=("onnx",))) == "static"
    assert chosen(program, graph) == "none"
    assert chosen(replace(programs("words"), ranges={}), ExportConfig(only=("onnx",))) == "dynamic"
    with pytest.raises(ExportError, match=r"the graph form looks weights up at run time.*found static"):
        export(program, tmp_path, replace(graph, activations="static"))


def test_a_file_computes_as_its_exporter_chose(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that quantizes no activations, beside static ones, is compared with the simulation, and has no steps."""
    stubs = {"static": Stub("static", b"s"), "float": Stub("float", b"f", Activations.NONE)}
    monkeypatch.setattr(build, "find_exporters", lambda: stubs)
    monkeypatch.setattr(build, "try_files", lambda *_: None)
    files = export(program, tmp_path).manifest.files
    assert {name: (entry.activations, entry.steps == (None,)) for name, entry in files.items()} == {
        "static": ("static", False),
        "float": ("none", True),
    }
    assert "reference/float/0" not in load_file(tmp_path / "golden.safetensors")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target": "vax"}, "there is no target 'vax'; expected arm or x86"),
        ({"activations": "int4"}, "there are no 'int4' activations; expected static, static-qnnpack, dynamic, none"),
        ({"centroid_range": 0}, "centroid_range is 0; expected 1 to 127"),
        ({"options": {"coreml": {}}}, "no exporter named coreml is installed"),
        ({"options": {"onnx": {"form": "graph"}}}, "the exporter onnx has no option 'form'; it has shell, allow_unfused"),
        ({"options": {"onnx": {"shell": 1}}}, "the option 'shell' of the exporter onnx is 1; expected bool"),
        ({"options": {"executorch": {"form": "x"}}}, "the option 'form' of the exporter executorch is 'x'; expected 'delegate' or 'graph'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(program: Program, tmp_path: Path, config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export(program, tmp_path, ExportConfig(**config))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_only_x86_is_told_of_sums_in_16_bits(program: Program, tmp_path: Path) -> None:
    facts = {
        target: export(program, tmp_path, ExportConfig(target, only=("onnx",))).manifest.files["model.onnx"].facts
        for target in ("arm", "x86")
    }
    assert facts["arm"] == {"opset": "21"}
    assert facts["x86"] == {"opset": "21", "session.x64quantprecision": "1, on x86 processors without VNNI, or int8 sums saturate"}
    narrow = export(program, tmp_path, ExportConfig("x86", centroid_range=64, only=("onnx",)))
    assert narrow.manifest.files["model.onnx"].facts == {"opset": "21"}


@pytest.mark.slow
def test_a_build_prints_its_files(program: Program, tmp_path: Path) -> None:
    text = str(export(program, tmp_path, ExportConfig(only=("onnx",))))
    assert "model.onnx" in text and "onnxruntime" in text and "static activations" in text
    assert "\x1b" not in text
    bare = str(export(replace(program, weights={}), tmp_path, ExportConfig(activations="none", only=("onnx",))))
    assert "nothing is compressed" in bare
