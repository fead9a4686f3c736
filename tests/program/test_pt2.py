"""`.pt2`: archives of torch.export.save, and what was planted in them."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections import namedtuple
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from qn_deploy.errors import InputError, QnDeployError
from qn_deploy.program.archive import program_from_bytes, program_to_bytes
from qn_deploy.program.members import read_members
from qn_deploy.program.pt2 import made_inputs, program_from_pt2, read_exported
from qn_deploy.program.store import load
from tests.program.archives import PLANTED, Graph, run, same, saved

torch.set_num_threads(1)


class Image(nn.Module):
    """In-place operators, BatchNorm, tied weights, buffers of both kinds, a constant, a weight in channels_last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same").to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.dropout = nn.Dropout()
        self.register_buffer("rebuilt", torch.rand(8), persistent=False)
        self.ramp = torch.arange(8.0)

    def forward(self, image: Tensor, gain: Tensor | None = None, mode: str = "sum", scale: float = 2.0) -> dict[str, Tensor]:
        features = nn.functional.relu_(self.norm(self.conv(image))).mean((2, 3))
        features += self.rebuilt
        scores = self.tied(self.dropout(self.first(features))) * scale + self.ramp
        return {"scores": scores, "features": features if gain is None else features * gain}


Pair = namedtuple("Pair", ["first", "second"])
pytree._register_namedtuple(Pair, serialized_type_name="tests.Pair")


@dataclass
class Result:
    loss: Tensor | None = None
    logits: Tensor | None = None


torch.export.register_dataclass(Result, serialized_type_name="tests.Result")


class Nested(nn.Module):
    """Regions without gradients, and outputs of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, more: dict[str, Tensor]) -> tuple[Any, ...]:
        y = self.layer(x)
        with torch.no_grad():
            z = y + more["b"]
        return Pair(y, {"q": [z, 3, None]}), Result(logits=y * 2)


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.LSTM(8, 8, batch_first=True)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.mix(self.embed(tokens))[0]
        return self.out(self.attend(x, x, x, key_padding_mask=~mask)[0])


def image_archive() -> bytes:
    torch.manual_seed(0)
    model = Image().eval()
    with torch.no_grad():
        model.norm.running_mean.uniform_(-1, 1)
    batch = Dim("batch", min=1, max=64)
    shapes = {"image": {0: batch}, "gain": {0: batch}, "mode": None, "scale": None}
    inputs = {"image": torch.randn(2, 3, 6, 6), "gain": torch.rand(2, 8), "mode": "sum", "scale": 3.0}
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    return saved(lambda file: torch.export.save(exported, file))


def nested_archive() -> bytes:
    torch.manual_seed(0)
    exported = torch.export.export(Nested().eval(), (torch.randn(2, 4), {"b": torch.randn(4)}))
    return saved(lambda file: torch.export.save(exported, file))


def sequence_archive() -> bytes:
    torch.manual_seed(0)
    exported = torch.export.export(Sequence().eval(), (torch.randint(20, (2, 7)), torch.ones(2, 7, dtype=torch.bool)))
    return saved(lambda file: torch.export.save(exported, file))


ARCHIVES = {"image": image_archive, "nested": nested_archive, "sequence": sequence_archive}


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    return {name: make() for name, make in ARCHIVES.items()}


@pytest.fixture(scope="module")
def image(archives: dict[str, bytes]) -> bytes:
    return archives["image"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_outputs_are_those_of_torchs_own_reader(archives: dict[str, bytes], name: str) -> None:
    data = archives[name]
    _, exported = read_exported(read_members(data))
    inputs = made_inputs(exported)
    reference = torch.export.load(io.BytesIO(data))  # our own file: it may be opened
    args, kwargs = reference.example_inputs
    leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    assert [tensor.shape for tensor in inputs] == [leaf.shape for leaf in leaves]
    assert [tensor.dtype for tensor in inputs] == [leaf.dtype for leaf in leaves]
    with torch.no_grad():
        expected = [leaf for leaf in pytree.tree_leaves(reference.module()(*args, **kwargs)) if isinstance(leaf, Tensor)]
        assert same(run(exported.module(), tuple(leaves)), tuple(expected))
    for found, tensors in ((exported.state_dict, reference.state_dict), (exported.constants, reference.constants)):
        assert list(found) == list(tensors)
        for key, tensor in tensors.items():
            assert torch.equal(found[key], tensor) and found[key].stride() == tensor.stride() and type(found[key]) is type(tensor)


@pytest.mark.parametrize("name", ARCHIVES)
def test_a_program_of_an_archive_computes_the_same_and_can_be_saved(archives: dict[str, bytes], name: str) -> None:
    program = program_from_pt2(read_members(archives[name]))
    with torch.no_grad():
        for found, golden in zip(run(program.exported.module(), program.golden.inputs), program.golden.outputs, strict=True):
            torch.testing.assert_close(found, golden, atol=1e-5, rtol=1e-4)  # BatchNorm is folded
    data = program_to_bytes(program)
    assert program_to_bytes(program_from_bytes(data)) == data
    assert program_to_bytes(program_from_pt2(read_members(archives[name]))) == data


def test_names_come_from_the_archive(archives: dict[str, bytes]) -> None:
    program = program_from_pt2(read_members(archives["image"]))
    assert (program.inputs, program.outputs) == (("image", "gain"), ("scores", "features"))
    assert program.classes["conv.weight"] == ("Conv2d", "_ConvNd", "Image")
    assert program.classes["first.weight"] == ("Linear", "Image") and "tied.weight" not in program.classes
    assert "made up" in program.notes[0] and str(program.exported.range_constraints).endswith("64]}")
    nested = program_from_pt2(read_members(archives["nested"]))
    assert nested.inputs == ("x", "more_b")
    assert nested.outputs == ("output_0_first", "output_0_second_q_0", "output_1_logits")
    assert nested.notes[0] == "output output_0_second_q_1 is left out: it is no tensor"


def test_examples_become_the_golden_inputs(archives: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "any.name").write_bytes(archives["image"])
    images, gain = torch.randn(5, 3, 6, 6), torch.rand(5, 8)
    program = load(tmp_path / "any.name", {"gain": gain, "image": images})
    assert program.golden.inputs[0] is images and program.golden.outputs[0].shape == (5, 8) and program.notes == ()
    with pytest.raises(InputError, match=r"any\.name: example_inputs, input gain is torch\.float32 \[5, 3\]"):
        load(tmp_path / "any.name", (images, gain[:, :3]))
    (tmp_path / "model.pt").write_bytes(program_to_bytes(program))
    with pytest.raises(InputError, match="holds golden inputs of its own"):
        load(tmp_path / "model.pt", (images, gain))


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import os; os.environ[{PLANTED!r}] = '1'",)


CALL = f"__import__('os').environ.__setitem__('{PLANTED}', '1')"


def forged(data: bytes, edit: Callable[[dict[str, bytes]], Any]) -> bytes:
    """The archive with other members; its CRCs are right."""
    members = {name: bytes(content) for name, content in read_members(data).items()}
    edit(members)

    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return saved(write)


def edited(member: str, edit: Callable[[Graph], Any]) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        content = json.loads(members[f"archive/{member}"])
        edit(content)
        members[f"archive/{member}"] = json.dumps(content).encode()

    return change


WEIGHTS, CONSTANTS, MODEL = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json", "models/model.json"


def plant_sample_inputs(members: dict[str, bytes]) -> None:
    members["archive/data/sample_inputs/model.pt"] = saved(lambda file: torch.save(Planted(), file))


def plant_pickled_weight(members: dict[str, bytes]) -> None:
    members["archive/data/weights/weight_0"] = saved(lambda file: torch.save(Planted(), file))
    edited(WEIGHTS, lambda config: next(iter(config["config"].values())).update(use_pickle=True, path_name="weight_0"))(members)


def plant_opaque_constant(members: dict[str, bytes]) -> None:
    members["archive/data/constants/opaque_obj_0"] = pickle.dumps(Planted())
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edited(CONSTANTS, lambda config: config["config"].update(planted=entry))(members)


def plant_expression(members: dict[str, bytes]) -> None:
    def edit(graph: Graph) -> None:
        graph["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][0]["as_expr"]["expr_str"] = f"[{CALL}, Integer(4)][1]"

    edited(MODEL, edit)(members)


def first_node(**change: Any) -> Callable[[dict[str, bytes]], None]:
    return edited(MODEL, lambda graph: graph["graph_module"]["graph"]["nodes"][0].update(change))


@pytest.mark.parametrize("plant", [plant_sample_inputs, plant_pickled_weight, plant_opaque_constant, plant_expression])
def test_the_attacks_are_real(image: bytes, plant: Callable[[dict[str, bytes]], None], tmp_path: Path) -> None:
    """torch's own reader runs what is planted; here it is refused, or never opened."""
    data = forged(image, plant)
    os.environ.pop(PLANTED, None)
    with suppress(Exception):  # whatever torch says, it says it too late
        torch.export.load(io.BytesIO(data))
    assert os.environ.pop(PLANTED, None) == "1"
    if plant is plant_sample_inputs:
        program_from_pt2(read_members(data))
    else:
        with pytest.raises(InputError):
            program_from_pt2(read_members(data))
    assert PLANTED not in os.environ


def weight(**change: Any) -> Callable[[dict[str, bytes]], None]:
    return edited(WEIGHTS, lambda config: config["config"]["conv.weight"].update(change))


def weight_meta(**change: Any) -> Callable[[dict[str, bytes]], None]:
    return edited(WEIGHTS, lambda config: config["config"]["conv.weight"]["tensor_meta"].update(change))


def spec(key: str, text: str) -> Callable[[dict[str, bytes]], None]:
    def edit(graph: Graph) -> None:
        graph["graph_module"]["module_call_graph"][0]["signature"][key] = text

    return edited(MODEL, edit)


def sizes(*numbers: int) -> list[dict[str, int]]:
    return [{"as_int": number} for number in numbers]


NORM = {"v": "first_weight", "g": "first_bias"}
REFUSED: dict[str, tuple[Callable[[dict[str, bytes]], Any], str]] = {
    "pickled weight": (plant_pickled_weight, "is stored as a pickle (weight_0), which is never opened"),
    "opaque constant": (plant_opaque_constant, "planted is stored as a pickle (opaque_obj_0), which is never opened"),
    "custom object": (weight(path_name="custom_obj_0"), "conv.weight is stored as a pickle (custom_obj_0)"),
    "a way out of the folder": (weight(path_name="../../../etc/passwd"), "conv.weight is stored as a pickle"),
    "absent bytes": (weight(path_name="weight_99"), "conv.weight has no bytes (weight_99)"),
    "larger than its bytes": (weight_meta(sizes=sizes(9, 3, 3, 3)), "does not fit its 864 bytes"),
    "beyond its bytes": (weight_meta(storage_offset={"as_int": 1}), "does not fit its 864 bytes"),
    "negative stride": (weight_meta(strides=sizes(-27, 9, 3, 1)), "which no tensor has"),
    "expanded giant": (weight_meta(sizes=sizes(1 << 30, 3), strides=sizes(0, 1)), "does not fit its 864 bytes"),
    "dynamic size": (weight_meta(sizes=[{"as_expr": {}}]), "conv.weight has no dtype and fixed sizes"),
    "unknown dtype": (weight_meta(dtype=99), "conv.weight has no dtype and fixed sizes"),
    "sparse": (weight_meta(layout=1), "conv.weight is a sparse tensor"),
    "half precision": (weight_meta(dtype=6), "conv.weight is torch.float16; a program computes in float32"),
    "no meta": (weight(tensor_meta=None), "conv.weight has no dtype"),
    "compiled library": (lambda members: members.update({"archive/data/aotinductor/model/a.so": b""}), "which is never opened"),
    "two models": (lambda members: members.update({"archive/models/b.json": b"{}"}), "holds 2 models"),
    "no configuration": (lambda members: members.pop(f"archive/{WEIGHTS}"), "an archive of torch before 2.9"),
    "other bytes order": (lambda members: members.update({"archive/byteorder": b"big"}), "has the byteorder b'big'"),
    "version": (lambda members: members.update({"archive/archive_version": b"1"}), "has the archive_version b'1'"),
    "expression": (plant_expression, "expected arithmetic on sizes"),
    "operator": (first_node(target="torch.ops.aten.max_pool2d_with_indices_backward.default"), "a forward operator"),
    "torch.load": (first_node(target="torch.load"), "a forward operator"),
    "branch": (first_node(target="torch.ops.higher_order.cond"), "a forward operator"),
    "kinds of arguments": (
        first_node(
            target="torch.ops.aten.clone.default",
            inputs=[
                {"name": "self", "arg": {"as_tensor": {"name": "image"}}, "kind": 1},
                {"name": "memory_format", "arg": {"as_int": 4}, "kind": 2},
            ],
        ),
        "expected as_memory_format or as_none",
    ),
    "weight_norm that reads too far": (
        first_node(
            target="torch.ops.aten._weight_norm.default",
            inputs=[{"name": name, "arg": {"as_tensor": {"name": f"p_{weight}"}}, "kind": 1} for name, weight in NORM.items()],
        ),
        "[[8, 8], [8]], which don't fit each other",
    ),
    "arguments": (first_node(inputs=[]), "expected each of"),
    "giant": (
        first_node(target="torch.ops.aten.arange.default", inputs=[{"name": "end", "arg": {"as_int": 10**13}, "kind": 1}]),
        "has the sizes [10000000000000]; a program's values have at most",
    ),
    "name": (first_node(name=f"x = {CALL}"), "a name of letters, digits and _"),
    "no graph": (lambda members: members.update({f"archive/{MODEL}": b"[]"}), "a graph that this torch doesn't know"),
    "no JSON": (lambda members: members.update({f"archive/{MODEL}": b"["}), "is no JSON"),
    "deep JSON": (lambda members: members.update({f"archive/{MODEL}": b"[" * 100_000}), "is no JSON"),
    "another number of outputs": (spec("out_spec", '[1, {"type": null, "context": null, "children_spec": []}]'), "doesn't know"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(image: bytes, case: str, tmp_path: Path) -> None:
    edit, words = REFUSED[case]
    os.environ.pop(PLANTED, None)
    (tmp_path / "model.pt2").write_bytes(forged(image, edit))
    with pytest.raises(InputError) as caught:
        load(tmp_path / "model.pt2")
    message = str(caught.value)
    assert words in message and str(tmp_path) in message and "\n" not in message
    assert PLANTED not in os.environ


def test_specs_and_metadata_are_data(image: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of the user's are never looked up: names are taken from specs, whatever they are of."""
    (tmp_path / "planted_module.py").write_text(f"import os; os.environ[{PLANTED!r}] = '1'")
    monkeypatch.syspath_prepend(tmp_path)
    os.environ.pop(PLANTED, None)
    leaf = {"type": None, "context": None, "children_spec": []}
    context = json.dumps({"__enum__": True, "fqn": "planted_module:Enum", "name": "A"})
    out = json.dumps([1, {"type": "planted_module.Output", "context": context, "children_spec": [leaf, leaf]}])
    metadata = {"nn_module_stack": f"a,conv,planted_module.Conv;b,norm,{CALL}", "source_fn_stack": f"x,{CALL}", "custom": CALL}
    for edit in (spec("out_spec", out), spec("in_spec", CALL), first_node(metadata=metadata)):
        program_from_pt2(read_members(forged(image, edit)))
    assert PLANTED not in os.environ


@pytest.mark.parametrize("seed", range(4))
def test_no_mutation_changes_an_archive_silently(archives: dict[str, bytes], seed: int) -> None:
    """Bytes that are changed are refused by the CRC of their member, or say nothing that is read."""
    chance = random.Random(seed)
    data = archives["nested"]
    expected = None
    for _ in range(100):
        changed = bytearray(data)
        start = chance.randrange(len(data))
        match chance.choice(["flip", "flip", "cut", "zero", "insert"]):
            case "flip":
                changed[start] ^= 1 << chance.randrange(8)
            case "cut":
                del changed[start:]
            case "zero":
                changed[start : start + 64] = bytes(len(changed[start : start + 64]))
            case "insert":
                changed[start:start] = chance.randbytes(chance.randrange(1, 9))
        if changed == data:
            continue
        try:
            loaded = program_from_pt2(read_members(bytes(changed)))
        except QnDeployError:
            continue
        expected = expected or program_to_bytes(program_from_pt2(read_members(data)))
        assert program_to_bytes(loaded) == expected
