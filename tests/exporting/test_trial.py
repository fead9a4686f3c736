"""Dead files are planted: each is told by one sentence, and export writes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qn_deploy.errors import ExportError
from qn_deploy.exporting import export as room
from qn_deploy.exporting.config import ExportConfig
from qn_deploy.exporting.export import export
from qn_deploy.exporting.exporter import Written, find_exporters
from qn_deploy.exporting.isolated import Child, Run, RuntimeFailure
from qn_deploy.exporting.trial import complaint, try_files
from qn_deploy.lowering.lower import Activations

Plant = Callable[[bytes], bytes]


def onnx_plant(change: Callable[[onnx.ModelProto], Any]) -> Plant:
    def plant(data: bytes) -> bytes:
        model = onnx.load_model_from_string(data)
        change(model)
        return bytes(model.SerializeToString())

    return plant


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == kind)


def nan_bias(model: onnx.ModelProto) -> None:
    gemm = node(model, "DequantizeLinear")
    scale = next(entry for entry in model.graph.initializer if entry.name == gemm.input[1])
    scale.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(scale), np.nan), scale.name))


def last_as_double(model: onnx.ModelProto) -> None:
    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Cast", [output.name], ["double"], to=TensorProto.DOUBLE))
    output.name, output.type.tensor_type.elem_type = "double", TensorProto.DOUBLE


def other_size(model: onnx.ModelProto) -> None:
    output = model.graph.output[0]
    model.graph.node.append(helper.make_node("Concat", [output.name] * 2, ["twice"], axis=1))
    output.CopyFrom(helper.make_tensor_value_info("twice", TensorProto.FLOAT, None))


def two_outputs(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Identity", [model.graph.output[0].name], ["again"]))
    model.graph.output.append(helper.make_tensor_value_info("again", TensorProto.FLOAT, None))


# exporter, what is planted, what the sentence says
PLANTED: dict[str, tuple[str, Plant, str]] = {
    "a file that is cut": ("onnx", lambda data: data[: len(data) // 2], "model.onnx does not run on onnxruntime"),
    "an empty file": ("onnx", lambda _: b"", "model.onnx does not run on onnxruntime"),
    "an operator that does not exist": ("onnx", onnx_plant(lambda m: setattr(node(m, "Conv"), "op_type", "Mish9")), "Mish9"),
    "an operator of a domain that nobody has": ("onnx", onnx_plant(lambda m: setattr(node(m, "Conv"), "domain", "acme")), "acme"),
    "an operator without a kernel": (
        "onnx",
        onnx_plant(lambda m: node(m, "Conv").attribute.append(helper.make_attribute("auto_pad", "NONSENSE"))),
        "model.onnx does not run on onnxruntime",
    ),
    "an input that nothing gives": ("onnx", onnx_plant(lambda m: node(m, "Conv").input.__setitem__(0, "nowhere")), "nowhere"),
    "outputs of another dtype": ("onnx", onnx_plant(last_as_double), r"gives float64 \[3, 10\] where the program gives float32 \[3, 10\]"),
    "outputs of another size": ("onnx", onnx_plant(other_size), r"gives float32 \[3, 20\] where the program gives float32 \[3, 10\]"),
    "an output too many": ("onnx", onnx_plant(two_outputs), r"gives float32 \[3, 10\], float32 \[3, 10\] where the program gives"),
    "garbage": ("executorch", lambda data: b"garbage" * 500, "model.pte does not run on ExecuTorch XNNPACK: InputError"),
    "a program that is cut": ("executorch", lambda data: data[: len(data) // 2], "model.pte does not run on ExecuTorch XNNPACK"),
    "a backend that nobody has": (
        "executorch",
        lambda data: data.replace(b"XnnpackBackend", b"XnnpackNothing"),
        "model.pte does not run on ExecuTorch XNNPACK",
    ),
    "no program at all": ("executorch", lambda _: b"\0" * 100, "model.pte does not run on ExecuTorch XNNPACK"),
}


def test_planted_dead_files_are_told(write: Any, programs: Any) -> None:
    exporters, program = find_exporters(), programs("residual")
    inputs = program.golden.inputs
    good = {name: write("residual", name, Activations.STATIC) for name in exporters}
    expected = {name: written.lowered.simulate(inputs) for name, written in good.items()}
    runs = [(name, Run(written.data)) for name, written in good.items()]
    runs += [(name, Run(plant(good[name].data))) for name, plant, _ in PLANTED.values()]
    results: list[Any] = []
    while len(results) < len(runs):  # a crash ends a child
        with Child() as child:
            results += child.run(runs[len(results) :], inputs)
    told = [complaint(exporters[name], good[name].lowered, result, expected[name]) for (name, _), result in zip(runs, results, strict=True)]
    assert told[: len(good)] == ["", ""]
    for (what, (_, _, words)), found in zip(PLANTED.items(), told[len(good) :], strict=True):
        assert re.search(words, found), (what, found)
        assert "\n" not in found
    assert len(PLANTED) >= 12


def test_numbers_that_are_none_are_told(write: Any) -> None:
    written: Written = write("residual", "onnx", Activations.STATIC)
    found = complaint(find_exporters()["onnx"], written.lowered, (torch.tensor([1.0, torch.nan]),), (torch.ones(2),))
    assert found == "model.onnx on onnxruntime gives NaN or infinity in output 0, where the program gives numbers"
    assert not complaint(find_exporters()["onnx"], written.lowered, (torch.tensor([torch.inf]),), (torch.tensor([torch.inf]),))


@pytest.mark.parametrize(
    ("message", "place"),
    [
        ("Could not find an implementation for Conv(11) node with name 'node_conv2d'", "aten.conv2d of the layer stem"),
        ("Could not find an implementation for Add(14) node with name ''", "aten.add (add)"),
        ("Missing operator: [0] aten::linear.out", "aten.linear of the layer classifier"),
        ("Missing operator: [0] aten::conv2d.out", "the operator aten.conv2d (3 of them)"),
        ("Missing operator: [2] aten::fft_rfft.out", "the operator aten.fft_rfft"),
        ("the runtime crashed with SIGSEGV", ""),
    ],
)
def test_the_operator_and_the_layer_are_named(write: Any, message: str, place: str) -> None:
    written = write("residual", "onnx", Activations.STATIC)
    found = complaint(find_exporters()["onnx"], written.lowered, RuntimeFailure(message), ())
    assert found == f"model.onnx does not run on onnxruntime{f', at {place}' if place else ''}: {message}"


@pytest.mark.slow  # a process for each
@pytest.mark.parametrize("word", ["segfault", "sleep", "exit"])
def test_a_crash_and_a_hang_are_told_with_the_way_out(third_exporter: str, write: Any, word: str) -> None:
    written = write("residual", "onnx", Activations.STATIC)

    class Third:
        filename, runtime = "model.third", "a third runtime"

    class Impatient(Child):
        def run(self, runs: Any, inputs: Any, timeout_s: float = 20.0) -> Any:
            return super().run(runs, inputs, timeout_s)

    files = {third_exporter: replace(written, data=word.encode()), "onnx": written}
    ending = {
        "segfault": "crashed with SIGSEGV",
        "sleep": "did not end within 20 s",
        "exit": "ended with exit code 1: the licence has run out",
    }
    exporters: dict[str, Any] = {**find_exporters(), third_exporter: Third()}
    with Impatient() as child, pytest.raises(ExportError) as caught:
        try_files(exporters, files, (torch.zeros(1),), {third_exporter: (), "onnx": ()}, child)
    assert str(caught.value) == (
        f"model.third does not run on a third runtime: the runtime {ending[word]}; nothing was written. Leave this file out: --only onnx"
    )


def test_nothing_is_written_and_the_build_before_stays(programs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        """The exporter for onnx, whose files are cut."""

        def __getattr__(self, name: str) -> Any:
            return getattr(find_exporters()["onnx"], name)

        def write(self, *arguments: Any) -> Written:
            written = find_exporters()["onnx"].write(*arguments)
            return replace(written, data=written.data[:-40])

    (tmp_path / "build").mkdir()
    (tmp_path / "build/model.onnx").write_bytes(b"the build before")
    monkeypatch.setattr(room, "find_exporters", lambda: {"onnx": Dead()})
    with pytest.raises(ExportError, match=r"model\.onnx does not run on onnxruntime.*; nothing was written"):
        export(programs("residual"), tmp_path / "build", ExportConfig(only=("onnx",)))
    assert os.listdir(tmp_path) == ["build"] and os.listdir(tmp_path / "build") == ["model.onnx"]
