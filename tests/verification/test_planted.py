"""Faults, each put into a right build by itself and caught by the rung that is meant for it; what is refused before any rung."""

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
from onnx import helper
from torch import Tensor, nn

from qn_deploy import ExportConfig, calibrate, capture, compress, export, verify
from qn_deploy.errors import ExportError, InputError
from qn_deploy.exporters.to_executorch import pte
from qn_deploy.exporting.manifest import GOLDEN
from qn_deploy.recipe import Int8, Recipe, Rule, Table
from qn_deploy.weights import table_blob
from tests.verification.folders import Folder, failed, set_constant

F = nn.functional
RECIPE = Recipe((Rule(Table(9, 4), module="Conv2d"), Rule(Table(8, 16), module="Embedding"), Rule(Table(4, 4))), title="planted")
STATIC, DYNAMIC, NONE = "static", "dynamic", "none"


def make(
    folder: Path,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    activations: Any = STATIC,
    recipe: Recipe = RECIPE,
    only: tuple[str, ...] = ("onnx",),
    shapes: Any = None,
) -> Path:
    """A build of a module, calibrated with its example inputs."""
    program = compress(capture(module.eval(), inputs, dynamic_shapes=shapes), recipe)
    if activations == STATIC:
        program = calibrate(program, [inputs])
    export(program, folder, ExportConfig(activations=activations, only=only))
    return folder


class Detector(nn.Module):
    """Two float outputs of one form, one of integers, one of truth values, all by exact operators: image [N, 3, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.boxes, self.scores = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.body(self.stem(image).relu()).relu()
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        boxes, scores = self.boxes(x), self.scores(x)
        return {"boxes": boxes, "scores": scores, "best": scores.argmax(1), "seen": scores > 0}


class Words(nn.Module):
    """Tokens int64 [N, T] to hidden states [N, T, 32]: no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(100, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm = nn.LayerNorm(32)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        hidden: Tensor = self.norm(x + self.down(F.gelu(self.up(x))))
        return hidden


def image(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 12, 12)


@pytest.fixture(scope="module")
def builds(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The right builds that faults are put into, by name, each made when it is first asked for."""
    made: dict[str, Path] = {}
    makers: dict[str, Callable[[Path], Path]] = {
        "both": lambda folder: Path(build.folder),
        "detector": lambda folder: make(folder, Detector(), (image(),)),
        "other": lambda folder: make(folder, Detector(), (image(),)),
        "dynamic": lambda folder: make(folder, Words(), (torch.randint(100, (2, 10)),), DYNAMIC),
        "float": lambda folder: make(folder, Words(), (torch.randint(100, (2, 10)),), NONE),
    }

    def find(name: str) -> Path:
        if name not in made:
            torch.manual_seed(len(made))
            made[name] = makers[name](tmp_path_factory.mktemp(name) / "build")
        return made[name]

    return find


# What a fault does to a folder. Layers are found by the name of their bias, their grid by the quantize behind them.


def layer(graph: onnx.GraphProto, bias: str) -> onnx.NodeProto:
    return next(node for node in graph.node if any(name.startswith(bias) for name in node.input[2:]))


def quantize(graph: onnx.GraphProto, bias: str) -> onnx.NodeProto:
    """The QuantizeLinear behind a layer."""
    value = layer(graph, bias).output[0]
    while True:
        reader = next(node for node in graph.node if value in node.input)
        if reader.op_type == "QuantizeLinear":
            return reader
        value = reader.output[0]


def own_constant(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, change: Callable[[np.ndarray], Any]) -> None:
    """Changes a constant for one of its readers alone."""
    (entry,) = [entry for entry in graph.initializer if entry.name == node.input[index]]
    copy = onnx.TensorProto()
    copy.CopyFrom(entry)
    copy.name = f"planted/{len(graph.initializer)}"  # one that nothing has
    graph.initializer.append(copy)
    node.input[index] = copy.name
    set_constant(graph, copy.name, change)


def grid(bias: str, index: int, change: Callable[[np.ndarray], Any]) -> Callable[[Folder], None]:
    """Scale (1) or zero point (2) of the quantize behind a layer."""
    return lambda folder: folder.graph(lambda graph: own_constant(graph, quantize(graph, bias), index, change))


def constant(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Folder], None]:
    return lambda folder: folder.onnx(name, change)


def attribute(bias: str, name: str, value: Any) -> Callable[[Folder], None]:
    def change(graph: onnx.GraphProto) -> None:
        node = layer(graph, bias)
        for entry in [entry for entry in node.attribute if entry.name == name]:
            node.attribute.remove(entry)
        node.attribute.append(helper.make_attribute(name, value))

    return lambda folder: folder.graph(change)


def swap(array: np.ndarray, one: int, other: int, axis: int = 0) -> None:
    view = np.moveaxis(array, axis, 0)
    view[[one, other]] = view[[other, one]]


def swap_codes(codes: np.ndarray) -> None:
    flat = codes.reshape(-1)
    other = next(index for index, code in enumerate(flat) if code != flat[0])
    flat[[0, other]] = flat[[other, 0]]


def next_code(codes: np.ndarray) -> None:
    codes.flat[3] = (codes.flat[3] + 1) % 4


def output_by(op_type: str, output: int, **attributes: Any) -> Callable[[Folder], None]:
    """One more node before an output of the file."""

    def change(graph: onnx.GraphProto) -> None:
        name = graph.output[output].name
        maker = next(node for node in graph.node if name in node.output)
        maker.output[list(maker.output).index(name)] = "planted"
        inputs = ["planted"]
        if op_type == "Gather":
            order = np.roll(np.arange(16), 1)
            graph.initializer.append(onnx.numpy_helper.from_array(order, "planted/order"))
            inputs.append("planted/order")
        graph.node.append(helper.make_node(op_type, inputs, [name], **attributes))
        if op_type == "Cast":
            graph.output[output].type.tensor_type.elem_type = attributes["to"]

    return lambda folder: folder.graph(change)


def swap_outputs(graph: onnx.GraphProto) -> None:
    """The first two results under each other's names."""
    names = {graph.output[0].name: graph.output[1].name, graph.output[1].name: graph.output[0].name}
    for node in graph.node:
        for names_of in (node.input, node.output):
            for index, name in enumerate(names_of):
                names_of[index] = names.get(name, name)


def flip_best(graph: onnx.GraphProto) -> None:
    """The least instead of the largest."""
    next(node for node in graph.node if node.op_type == "ArgMax").op_type = "ArgMin"


def greater_or_equal(graph: onnx.GraphProto) -> None:
    next(node for node in graph.node if node.op_type == "Greater").op_type = "Less"


def drop_a_relu(graph: onnx.GraphProto) -> None:
    """The clamp of the stem: a lower zero point lets what lies below zero pass."""
    node = quantize(graph, "stem.bias")
    for reader in [node, *(other for other in graph.node if node.output[0] in other.input)]:
        own_constant(graph, reader, 2, lambda zero: zero.fill(100))


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Folder], None]:
    return lambda folder: folder.golden(change)


def swap_tensors(one: str, other: str) -> Callable[[Folder], None]:
    return tensors(lambda held: held.update({one: held[other], other: held[one]}))


def other_blob_codes(folder: Folder) -> None:
    """Two codes of a table in model.pte change places."""
    data = (folder.path / "model.pte").read_bytes()
    blob = max((blob for blob in pte.named_data(data).values() if table_blob.is_blob(blob)), key=len)
    weight = table_blob.read(blob).int8()
    for at in reversed(range(len(blob))):
        changed = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
        try:
            if not torch.equal(table_blob.read(changed).int8(), weight):
                return folder.write("model.pte", data.replace(blob, changed))
        except InputError:
            continue
    raise AssertionError("no bit of the blob is a weight's")


def other_bias_of_the_pte(folder: Folder) -> None:
    """A bias in model.pte: XNNPACK holds it as it is."""
    data = (folder.path / "model.pte").read_bytes()
    held = {name: part for name, part in pte.named_data(data).items() if len(part) == 40}  # the head's: ten values
    (bias,) = [part for name, part in held.items() if not name.startswith("scale_")]
    values = np.frombuffer(bias, np.int32) + 2_000
    folder.write("model.pte", data.replace(bias, values.astype(np.int32).tobytes()))


def other_companion(folder: Folder) -> None:
    name = "model.stock.qnz"
    data = bytearray((folder.path / name).read_bytes())
    data[-20] ^= 1
    (folder.path / name).write_bytes(data)
    digest = __import__("hashlib").sha256(data).hexdigest()
    folder.manifest(lambda held: held["files"]["model.pte"]["companions"][name].update(sha256=digest))


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


STALE = ("model.onnx", GOLDEN)


@pytest.mark.parametrize("name", STALE)
def test_a_file_of_another_build_is_not_the_one_that_was_exported(
    name: str, builds: Callable[[str], Path], here: None, tmp_path: Path
) -> None:
    folder = Folder(Path(shutil.copytree(builds("detector"), tmp_path / "copy")))
    stale = (builds("other") / name).read_bytes()
    (folder.path / name).write_bytes(stale)
    with pytest.raises(InputError, match=rf"{name} is not the file that was exported"):
        verify(folder.path)
    folder.write(name, stale)  # and if the manifest is made to agree, a rung tells, or the steps of the other build
    if name == GOLDEN:
        with pytest.raises(InputError, match="holds no multiples of it"):
            verify(folder.path)
    else:
        assert failed(verify(folder.path))[0] == (1, REWRITE)


def test_a_simulation_that_is_nan_is_refused(builds: Callable[[str], Path], here: None, tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(builds("both"), tmp_path / "copy")))
    folder.golden(lambda held: held["simulated/onnx/0"][0].fill_(torch.nan))
    with pytest.raises(InputError, match="holds no multiples of it"):
        verify(folder.path)


@pytest.mark.parametrize("name", ["model.onnx", "model.pte", "model.stock.qnz", GOLDEN])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_file_that_is_cut_off_or_gone_is_named(name: str, damage: str, build: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(build.folder, tmp_path / "copy"))
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        verify(folder)


def test_no_file_is_no_success(builds: Callable[[str], Path], here: None, tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(builds("detector"), tmp_path / "copy")))
    folder.manifest(lambda held: held.update(files={}))
    with pytest.raises(InputError, match="lists no program"):
        verify(folder.path)


class Pixels(nn.Module):
    """Boxes in pixels and scores of 0 to 1 in one output: one step for both leaves nothing of the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(16, 10)
        with torch.no_grad():
            self.mix.weight[:4] *= 1000.0

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)  # type: ignore[no-any-return]


def test_a_program_that_lost_an_output_is_refused_at_export(tmp_path: Path) -> None:
    inputs = (torch.rand(2, 40, 16),)
    with pytest.raises(ExportError, match=r"the output output is lost in the program for onnx: 6 of 10 channels .*--allow-constant"):
        make(tmp_path / "build", Pixels(), inputs, recipe=Recipe((Rule(Int8()),)))
    assert not (tmp_path / "build").exists()
    make(tmp_path / "float", Pixels(), inputs, NONE, recipe=Recipe((Rule(Int8()),)))  # as the message says


def test_an_export_that_allows_it_says_so_in_verify(tmp_path: Path, here: None) -> None:
    inputs = (torch.rand(2, 40, 16),)
    program = calibrate(compress(capture(Pixels(), inputs), Recipe((Rule(Int8()),))), [inputs])
    export(program, tmp_path, ExportConfig(only=("onnx",), allow_constant=True))
    report = verify(tmp_path)
    (told,) = [check for check in report.checks if check.limit == "allowed by the export"]
    assert "6 of 10 channels of dimension 2 (4, 5, 6, 7, 8, 9)" in told.found and report.passed
