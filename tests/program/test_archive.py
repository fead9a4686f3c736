from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from qn_deploy.compress.weights import CompressedWeight, IntWeight, PQWeight, codes_dtype
from qn_deploy.errors import InputError
from qn_deploy.program import graph_json
from qn_deploy.program.allow_list import check_graph
from qn_deploy.program.archive import program_from_bytes, program_to_bytes, read_program, write_program
from qn_deploy.program.container import pack, unpack
from qn_deploy.program.program import Batch, Golden, Program
from qn_deploy.recipe import Int4, conv_net

torch.set_num_threads(1)

Graph = dict[str, Any]
PLANTED = "QN_DEPLOY_TEST_PLANTED"  # the environment variable that planted code sets


class ConvNet(nn.Module):
    """Every kind of tensor: parameters, tied parameters, buffers of both kinds, constants of both kinds, and one that isn't used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same")
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.first.weight
        self.unused = nn.Linear(2, 2)
        self.register_buffer("kept", torch.rand(8))
        self.register_buffer("rebuilt", torch.rand(8), persistent=False)
        self.ramp = torch.arange(8.0)

    def forward(self, image: Tensor, gain: Tensor) -> dict[str, Any]:
        features = nn.functional.gelu(self.norm(self.conv(image)), approximate="tanh").mean((2, 3))
        scores = self.tied(self.first(features) * gain) + self.kept + self.rebuilt + self.ramp + torch.tensor([0.5] * 8)
        return {"scores": scores, "more": (features, scores * image.shape[0])}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(self.embedding(tokens), self.embedding.weight)


def random_table(weight: Tensor, d: int, size: int = 4, books: int = 1) -> PQWeight:
    out = weight.shape[0]
    codes = torch.randint(size, (out, weight.numel() // out // d)).to(codes_dtype(size))
    centroids = torch.randint(-127, 128, (books, size, d), dtype=torch.int8)
    return PQWeight(codes, centroids, torch.rand(out) / 100 + 0.001, tuple(weight.shape))


def make_program(model: nn.Module, weights: dict[str, CompressedWeight], inputs: Batch, shapes: Any = None, **rest: Any) -> Program:
    with torch.no_grad():
        golden = Golden(inputs, run(model, inputs))
        for name, weight in weights.items():
            model.get_parameter(name).copy_(weight.dequantize())
    return Program(torch.export.export(model.eval(), inputs, dynamic_shapes=shapes), weights, golden, **rest)


def conv_program() -> Program:
    torch.manual_seed(0)
    model = ConvNet().eval()
    weights: dict[str, CompressedWeight] = {
        "conv.weight": random_table(model.conv.weight, d=9),
        "first.weight": IntWeight.from_float(model.first.weight),
    }
    batch = Dim("batch", min=2, max=32)
    inputs = (torch.randn(4, 3, 6, 6), torch.rand(4, 8))
    calibration = ((torch.randn(2, 3, 6, 6), torch.rand(2, 8)), (torch.randn(3, 3, 6, 6), torch.rand(3, 8)))
    rest = {"calibration": calibration, "recipe": conv_net(16), "left": {"unused.weight": "no input reaches it"}}
    return make_program(model, weights, inputs, ({0: batch}, {0: batch}), **rest)


def words_program() -> Program:
    torch.manual_seed(0)
    model = Words()
    weights: dict[str, CompressedWeight] = {"embedding.weight": random_table(model.embedding.weight, d=8, size=16, books=2)}
    return make_program(model, weights, (torch.tensor([[1, 2, 39]]),))


def run(model: nn.Module, inputs: Batch) -> Batch:
    return tuple(torch.utils._pytree.tree_leaves(model(*inputs)))


def same(found: Batch, expected: Batch) -> bool:
    return len(found) == len(expected) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture(scope="module")
def program() -> Program:
    return conv_program()


@pytest.fixture(scope="module")
def good(program: Program) -> bytes:
    return program_to_bytes(program)


@pytest.fixture(scope="module")
def small() -> bytes:
    return program_to_bytes(words_program())


# --- round trip


def test_a_program_comes_back_as_it_was(program: Program, tmp_path: Path) -> None:
    write_program(program, tmp_path / "model.pt")
    loaded = read_program(tmp_path / "model.pt")
    assert same(loaded.golden.inputs, program.golden.inputs) and same(loaded.golden.outputs, program.golden.outputs)
    assert len(loaded.calibration) == 2 and all(same(a, b) for a, b in zip(loaded.calibration, program.calibration, strict=True))
    assert (loaded.recipe, loaded.left) == (program.recipe, program.left)
    assert list(loaded.weights) == list(program.weights)
    assert [type(weight) for weight in loaded.weights.values()] == [PQWeight, IntWeight]
    for name, weight in loaded.weights.items():
        assert torch.equal(weight.int8(), program.weights[name].int8()) and torch.equal(weight.scale, program.weights[name].scale)
        assert torch.equal(loaded.exported.state_dict[name], weight.dequantize())


@pytest.mark.parametrize("batch", [2, 5, 32])
def test_outputs_are_identical_for_every_batch_size(program: Program, good: bytes, batch: int) -> None:
    inputs = (torch.randn(batch, 3, 6, 6), torch.rand(batch, 8))
    assert same(run(program_from_bytes(good).exported.module(), inputs), run(program.exported.module(), inputs))


def test_dynamic_shapes_keep_their_bounds(program: Program, good: bytes) -> None:
    loaded = program_from_bytes(good).exported
    assert str(loaded.range_constraints) == str(program.exported.range_constraints)
    with pytest.raises(AssertionError, match="Guard failed"):
        loaded.module()(torch.randn(33, 3, 6, 6), torch.rand(33, 8))


def test_names_of_inputs_parameters_and_buffers_survive(program: Program, good: bytes) -> None:
    loaded, original = program_from_bytes(good).exported, program.exported
    assert loaded.graph_signature.user_inputs == ("image", "gain")
    assert loaded.graph_signature.parameters == original.graph_signature.parameters
    assert loaded.graph_signature.buffers == original.graph_signature.buffers
    assert loaded.graph_signature.non_persistent_buffers == original.graph_signature.non_persistent_buffers
    assert list(loaded.state_dict) == list(original.state_dict)
    assert list(loaded.constants) == list(original.constants)


def test_no_loaded_tensor_is_a_view(good: bytes) -> None:
    loaded = program_from_bytes(good)  # torch.export refuses to detach a view in place when the program is exported again
    tensors = [*loaded.exported.state_dict.values(), *loaded.exported.constants.values(), *loaded.golden.inputs]
    assert not any(tensor._is_view() for tensor in tensors if isinstance(tensor, Tensor))
    again = torch.export.export(loaded.exported.module(), loaded.golden.inputs)
    assert same(run(again.module(), loaded.golden.inputs), run(loaded.exported.module(), loaded.golden.inputs))


def test_tied_weights_are_stored_once_and_stay_tied(good: bytes) -> None:
    _, members = unpack(good)
    stored = safetensors.torch.load(members["weights.safetensors"])
    assert not {"first.weight", "tied.weight", "conv.weight"} & set(stored)
    state_dict = program_from_bytes(good).exported.state_dict
    assert state_dict["tied.weight"] is state_dict["first.weight"]


def test_float_weights_that_are_tied_are_stored_once() -> None:
    model = ConvNet()
    data = program_to_bytes(make_program(model, {}, (torch.randn(2, 3, 6, 6), torch.rand(2, 8))))
    stored = safetensors.torch.load(unpack(data)[1]["weights.safetensors"])
    assert "first.weight" in stored and "tied.weight" not in stored
    assert torch.equal(program_from_bytes(data).exported.state_dict["tied.weight"], model.first.weight)


def test_integer_inputs_and_local_codebooks() -> None:
    program = words_program()
    loaded = program_from_bytes(program_to_bytes(program))
    assert loaded.golden.inputs[0].dtype == torch.int64
    assert (loaded.calibration, loaded.recipe, loaded.left) == ((), None, {})
    tokens = (torch.tensor([[3, 0, 21]]),)
    assert same(run(loaded.exported.module(), tokens), run(program.exported.module(), tokens))


def test_an_input_given_twice_and_a_channels_last_weight() -> None:
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    image = torch.randn(1, 4, 5, 5)
    program = make_program(model, {}, (image,), calibration=((image,), (image,)))
    loaded = program_from_bytes(program_to_bytes(program))
    assert loaded.exported.state_dict["weight"].stride() == model.weight.stride() == (36, 1, 12, 4)
    assert same(run(loaded.exported.module(), (image,)), run(program.exported.module(), (image,)))


SIZES = st.integers(1, 16) | st.integers(17, 256) | st.integers(257, 2048)


@settings(max_examples=8, deadline=None)
@given(d=st.sampled_from([1, 2, 4]), sizes=st.lists(SIZES, min_size=1, max_size=2), books=st.integers(1, 2), seed=st.integers(0, 99))
def test_any_table_comes_back(d: int, sizes: list[int], books: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(8, 3)
    table = random_table(model.weight, d, sizes[0], books)
    for size in sizes[1:]:
        table = replace(table, residual=replace(random_table(model.weight, d, size), scale=table.scale))
    program = make_program(model, {"weight": table}, (torch.randn(1, 8),))
    loaded = program_from_bytes(program_to_bytes(program))
    found = loaded.weights["weight"]
    assert isinstance(found, PQWeight) and [part.codes.dtype for part in found.tables] == [part.codes.dtype for part in table.tables]
    assert torch.equal(loaded.exported.state_dict["weight"], table.dequantize())
    assert program_to_bytes(loaded) == program_to_bytes(program)


def test_four_bits_come_back() -> None:
    model = nn.Linear(5, 3)
    program = make_program(model, {"weight": IntWeight.from_float(model.weight, method=Int4())}, (torch.randn(1, 5),))
    found = program_from_bytes(program_to_bytes(program)).weights["weight"]
    assert isinstance(found, IntWeight) and found.bits == 4
    assert torch.equal(found.values, program.weights["weight"].int8())


# --- the bytes


def test_members_are_stored_in_a_fixed_order_and_date(good: bytes) -> None:
    assert good[:30] == b"PK\3\4\x14\0\0\0\0\0\0\0\x21\0" + good[14:26] + b"\x0d\0\0\0"  # not deflated, 1980-01-01, no extra field
    assert good[30:].startswith(b'manifest.json{"format": "qn-deploy", "version": 2, "members": {"graph.json": {"sha256": "')
    entries = zipfile.ZipFile(io.BytesIO(good)).infolist()
    assert [entry.filename for entry in entries] == [
        "manifest.json",
        "graph.json",
        "weights.safetensors",
        "tables.safetensors",
        "golden.safetensors",
        "calibration.safetensors",
    ]
    assert {(entry.compress_type, entry.date_time) for entry in entries} == {(0, (1980, 1, 1, 0, 0, 0))}


def test_there_is_no_pickle_and_no_path_of_this_machine(good: bytes) -> None:
    assert b"pickle" not in good and b"\x80\x02" not in unpack(good)[1]["graph.json"]
    for private in (os.getcwd(), sys.prefix, str(Path(__file__).parent), "ConvNet", "stack_trace"):
        assert private.encode() not in good


def test_a_table_takes_its_own_size_and_nothing_more() -> None:
    model = nn.Linear(256, 256, bias=False)
    table = random_table(model.weight, d=8)
    program = make_program(model, {"weight": table}, (torch.randn(1, 256),))
    assert len(program_to_bytes(program)) < table.nbytes + 8000 < model.weight.nbytes / 10


def test_codes_and_values_of_four_bits_share_bytes() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    codes = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 15]], dtype=torch.uint8)
    table = PQWeight(codes, torch.arange(16, dtype=torch.int8).reshape(1, 16, 1), torch.ones(1), (3, 4))
    int4 = IntWeight(torch.tensor([[1, -1, 7], [-7, 0, 2]], dtype=torch.int8), torch.ones(1), bits=4)
    _, members = unpack(program_to_bytes(make_program(model, {"0.weight": table, "1.weight": int4}, (torch.randn(1, 4),))))
    stored = safetensors.torch.load(members["tables.safetensors"])
    assert bytes(stored["0.weight.codes"].tolist()) == bytes.fromhex("21 43 65 87 a9 fb")
    assert bytes(stored["1.weight.values"].tolist()) == bytes.fromhex("f1 97 20")
    assert stored["0.weight.codes"].dtype == stored["1.weight.values"].dtype == torch.uint8


def test_the_same_program_gives_the_same_bytes(program: Program, good: bytes) -> None:
    assert program_to_bytes(program) == good
    assert program_to_bytes(program_from_bytes(good)) == good
    assert program_to_bytes(conv_program()) == good


def test_the_same_model_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import hashlib, sys, torch
        from qn_deploy.program.archive import program_to_bytes
        from qn_deploy.program.program import Golden, Program

        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

            def forward(self, x, y):
                return {"u": self.a(x) + self.b(y), "v": (x * x.shape[0]).relu()}

        torch.manual_seed(0)
        inputs, batch = (torch.randn(2, 4), torch.randn(2, 4)), torch.export.Dim("batch")
        exported = torch.export.export(Net().eval(), inputs, dynamic_shapes=({0: batch}, {0: batch}))
        print(hashlib.sha256(program_to_bytes(Program(exported, {}, Golden(inputs, inputs)))).hexdigest())
    """)
    runs = []
    for seed in ("1", "2"):
        file = tmp_path / f"user{seed}" / "train.py"
        file.parent.mkdir()
        file.write_text(script)
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        runs.append(subprocess.Popen([sys.executable, str(file)], stdout=subprocess.PIPE, env=environment, cwd=file.parent, text=True))
    first, second = (process.communicate(timeout=120)[0].strip() for process in runs)
    assert len(first) == 64 and first == second


# --- files that are no model.pt


def refusal(path: Path, data: bytes | None = None) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_program(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "model.pt")
    assert "Is a directory" in refusal(tmp_path)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_files_of_other_kinds_are_named_with_the_way_out(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    state = model.state_dict()
    exported = torch.export.export(model, (torch.ones(1, 2),))
    traced = torch.jit.trace(model, torch.ones(1, 2))  # type: ignore[no-untyped-call]
    cases = {
        "is empty": b"",
        "torch.save checkpoint": saved(lambda file: torch.save(state, file)),
        "old torch.save file": saved(lambda file: torch.save(state, file, _use_new_zipfile_serialization=False)),
        "TorchScript": saved(lambda file: torch.jit.save(traced, file)),
        "torch.export archive": saved(lambda file: torch.export.save(exported, file)),
        "safetensors file": safetensors.torch.save(state),
        "ExecuTorch": b"\0\0\0\0ET12" + bytes(100),
        "zip of something else (notes.txt)": saved(lambda file: zipfile.ZipFile(file, "w").writestr("notes.txt", "hello")),
        "manifest of something else": saved(lambda file: zipfile.ZipFile(file, "w").writestr("manifest.json", "[]")),
        "no program of qn-deploy": b"hello, this is text",
    }
    for words, data in cases.items():
        message = refusal(tmp_path / "model.pt", data)
        assert words in message, message
        assert "qn_deploy.save(" in message or words in ("is empty", "ExecuTorch")


def test_a_newer_format_says_upgrade(tmp_path: Path, good: bytes) -> None:
    message = refusal(tmp_path / "model.pt", forge(good, lambda manifest, members: manifest.update(version=3)))
    assert "format version 3" in message and "upgrade" in message


def test_version_1_which_gave_each_code_a_byte_is_read(program: Program, good: bytes, tmp_path: Path) -> None:
    table = program.weights["conv.weight"]
    assert isinstance(table, PQWeight)

    def edit(manifest: Graph, members: dict[str, bytes]) -> None:
        manifest["version"] = 1
        tables = safetensors.torch.load(members["tables.safetensors"])
        members["tables.safetensors"] = safetensors.torch.save({**tables, "conv.weight.codes": table.codes})

    (tmp_path / "model.pt").write_bytes(forge(good, edit))
    found = read_program(tmp_path / "model.pt").weights["conv.weight"]
    assert torch.equal(found.int8(), table.int8())


def test_a_manifest_that_lies_about_a_tensor(tmp_path: Path, good: bytes) -> None:
    def edit(manifest: Graph, members: dict[str, bytes]) -> None:
        manifest["tensors"][0]["shape"][0] += 1

    assert "the manifest says float32 [9, 3, 3, 3]" in refusal(tmp_path / "model.pt", forge(good, edit))


def test_a_code_past_the_table(tmp_path: Path, good: bytes) -> None:
    def edit(manifest: Graph, members: dict[str, bytes]) -> None:
        tables = safetensors.torch.load(members["tables.safetensors"])
        tables["conv.weight.codes"][0] = 0x0C
        members["tables.safetensors"] = safetensors.torch.save(tables)

    assert "code 12 points past the last of 4 centroids" in refusal(tmp_path / "model.pt", forge(good, edit))


def test_a_tensor_nobody_asked_for(tmp_path: Path, good: bytes) -> None:
    def edit(manifest: Graph, members: dict[str, bytes]) -> None:
        members["tables.safetensors"] = safetensors.torch.save(
            {**safetensors.torch.load(members["tables.safetensors"]), "extra": torch.ones(1)}
        )

    assert "tensors that the graph doesn't use: ['extra']" in refusal(tmp_path / "model.pt", forge(good, edit))


# --- damage


def test_no_mutation_changes_a_program_silently(small: bytes, tmp_path: Path) -> None:
    chance = random.Random(0)
    path = tmp_path / "model.pt"
    for _ in range(400):
        data = bytearray(small)
        start = chance.randrange(len(data))
        match chance.choice(["flip", "flip", "cut", "zero", "insert"]):
            case "flip":
                data[start] ^= 1 << chance.randrange(8)
            case "cut":
                del data[start:]
            case "zero":
                stop = min(len(data), start + chance.choice([1, 8, 64, 1024]))
                data[start:stop] = bytes(stop - start)
            case "insert":
                data[start:start] = chance.randbytes(chance.randrange(1, 9))
        if data == small:
            continue
        path.write_bytes(data)
        try:
            loaded = read_program(path)
        except InputError as error:
            assert str(path) in str(error)
        else:
            assert program_to_bytes(loaded) == small  # slack of the zip: a date, a comment


def test_every_cut_is_refused(small: bytes, tmp_path: Path) -> None:
    for stop in range(1, len(small), len(small) // 60):
        refusal(tmp_path / "model.pt", small[:stop])


def test_a_changed_member_with_a_right_crc_fails_its_hash(good: bytes, tmp_path: Path) -> None:
    source = zipfile.ZipFile(io.BytesIO(good))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in source.namelist():
            content = source.read(name)
            archive.writestr(name, content[:-1] + bytes([content[-1] ^ 1]) if name == "weights.safetensors" else content)
    assert "the hash of weights.safetensors doesn't match" in refusal(tmp_path / "model.pt", buffer.getvalue())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_stands_twice_is_refused(good: bytes, tmp_path: Path) -> None:
    buffer = io.BytesIO(good)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("graph.json", b"{}")
    assert "twice" in refusal(tmp_path / "model.pt", buffer.getvalue())


def test_a_decompression_bomb_is_not_unpacked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", bytes(50_000_000))
    assert "damaged" in refusal(tmp_path / "model.pt", buffer.getvalue())


# --- attacks: the hashes are made right again, so that only the allow-list stands between the file and torch


def forge(good: bytes, edit: Callable[[Graph, dict[str, bytes]], Any]) -> bytes:
    manifest, members = unpack(good)
    del manifest["members"]
    edit(manifest, members)
    return pack(manifest, members)


def replace_member(name: str, data: bytes) -> Callable[[Graph, dict[str, bytes]], None]:
    return lambda _, members: members.update({name: data})


def forge_graph(good: bytes, edit: Callable[[Graph], Any]) -> bytes:
    def edit_member(manifest: Graph, members: dict[str, bytes]) -> None:
        graph = json.loads(members["graph.json"])
        edit(graph)
        members["graph.json"] = json.dumps(graph).encode()

    return forge(good, edit_member)


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (PLANT,)


PLANT = f"import os; os.environ[{PLANTED!r}] = '1'"
CALL = f"__import__('os').environ.__setitem__('{PLANTED}', '1')"


def plant_expression(graph: Graph) -> None:
    graph["graph_module"]["graph"]["tensor_values"]["image"]["sizes"][0]["as_expr"]["expr_str"] = f"[{CALL}, Integer(4)][1]"


def plant_guard(graph: Graph) -> None:
    graph["guards_code"] = [f"{CALL} is None"]


def plant_tree(graph: Graph) -> None:
    signature = graph["graph_module"]["module_call_graph"][0]["signature"]
    version, tree = json.loads(signature["out_spec"])
    tree["context"] = json.dumps({"__enum__": True, "fqn": "planted_module:Enum", "name": "A"})
    signature["out_spec"] = json.dumps([version, tree])


def plant_input_name(graph: Graph) -> None:
    spec = graph["graph_module"]["module_call_graph"][0]["signature"]
    spec["forward_arg_names"] = ["image", f"gain=({CALL}, None)[1]"]


def plant_operator(graph: Graph) -> None:
    node = graph["graph_module"]["graph"]["nodes"][-1]
    node["target"] = "torch.serialization.os.putenv"
    node["inputs"] = [{"name": "x", "arg": {"as_string": text}, "kind": 1} for text in (PLANTED, "1")]


def plant_torch_load(graph: Graph) -> None:
    node = graph["graph_module"]["graph"]["nodes"][-1]
    node["target"] = "torch.load"
    node["inputs"] = [{"name": "x", "arg": {"as_string": "/tmp/planted.pt"}, "kind": 1}]


def check_refused(tmp_path: Path, data: bytes, *words: str) -> None:
    os.environ.pop(PLANTED, None)
    message = refusal(tmp_path / "model.pt", data)
    assert PLANTED not in os.environ
    for word in words:
        assert word in message, message


@pytest.fixture
def planted_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_module.py").write_text(PLANT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_module", raising=False)


@pytest.mark.usefixtures("planted_module")
@pytest.mark.parametrize("plant", [plant_expression, plant_guard, plant_tree])
def test_planted_code_runs_without_the_allow_list(good: bytes, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Graph], None]) -> None:
    """The attacks below are real ones: torch alone runs them."""
    monkeypatch.setattr(graph_json, "check_graph", lambda graph: None)
    os.environ.pop(PLANTED, None)
    with suppress(Exception):  # whatever torch says, it says it too late
        loaded = program_from_bytes(forge_graph(good, plant))
        loaded.exported.module()(*loaded.golden.inputs)
    assert os.environ.pop(PLANTED, None) == "1"


def test_expression_with_code_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_expression), "expr_str", "__import__", "expected arithmetic on sizes")


def test_guard_with_code_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_guard), "guards_code", "expected a condition on the sizes")


@pytest.mark.usefixtures("planted_module")
def test_tree_spec_that_imports_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_tree), "out_spec", "expected a tuple, list or dict")
    assert "planted_module" not in sys.modules


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].size()[0] % 2 == 0",
        "8*(L['i'].size()[0] // 2)*(L['i'].size()[0] // 3) >= -2",
        "max(1, L['x'].size()[1]) != 3 and not L['x'].size()[0] == L['y'][0].size()[0]",
    ],
)
def test_guards_on_the_list(small: bytes, guard: str) -> None:
    check_graph({**json.loads(unpack(small)[1]["graph.json"]), "guards_code": [guard]})


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].__class__",
        "L['x'].numpy().tofile('x')",
        "open('x')",
        "L['x\\'] or 1']",
        "(lambda: 1)()",
        "[i for i in L]",
        "L['x'] if 1 else 2",
        "max(*L)",
        "f'{L}'",
        "(x := 1)",
        "1), print(1), (1",
        "1 # \n",
        "(1\n)",
        "9 ** 9",
    ],
)
def test_guards_outside_the_list(small: bytes, guard: str) -> None:
    with pytest.raises(InputError, match="guards_code"):
        check_graph({**json.loads(unpack(small)[1]["graph.json"]), "guards_code": [guard]})


def test_name_that_becomes_source_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_input_name), "forward_arg_names")
    for key, place in {"name": ("graph", "nodes", 0), "parameter_name": ("signature", "input_specs", 0, "parameter")}.items():

        def rename(graph: Graph, key: str = key, place: tuple[Any, ...] = place) -> None:
            target = graph["graph_module"]
            for step in place:
                target = target[step]
            target[key] = f'x"); {CALL}; ("'

        check_refused(tmp_path, forge_graph(good, rename), key, "letters, digits")


def test_foreign_operator_is_refused(good: bytes, tmp_path: Path) -> None:
    check_refused(tmp_path, forge_graph(good, plant_operator), "target 'torch.serialization.os.putenv' is refused")
    check_refused(tmp_path, forge_graph(good, plant_torch_load), "target 'torch.load' is refused")


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.save.default",  # writes a file
        "torch.ops.aten.from_file.default",  # reads or makes one
        "torch.ops.aten.linear.__class__",
        "torch.ops.aten.__dict__.clear",
        "torch.ops.aten.linear.default.__init__",
        "torch.ops.aten.format.default",  # the TorchScript interpreter alone knows it
        "torch.ops.aten._print.default",
        "torch.ops.aten.no_such_operator.default",
        "torch.ops.higher_order.cond",
        "torch.ops.mylib.op.default",
        "torch.ops.load_library",
        "torch.hub.load",
        "_operator.methodcaller",
        "_operator.attrgetter",
        "math.trunc",
        "#extension:op",
        "os.system",
        "",
    ],
)
def test_operators_outside_the_list_are_refused(small: bytes, target: str) -> None:
    graph = json.loads(unpack(small)[1]["graph.json"])
    graph["graph_module"]["graph"]["nodes"][0]["target"] = target
    with pytest.raises(InputError, match=r"target .* is refused; expected an operator of torch\.ops\.aten"):
        check_graph(graph)


@pytest.mark.parametrize("change", ["as_operator", "as_graph", "as_custom_obj", "as_string_to_argument", "as_complex"])
def test_arguments_outside_the_list_are_refused(small: bytes, change: str) -> None:
    graph = json.loads(unpack(small)[1]["graph.json"])
    graph["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {change: "torch.load"}
    with pytest.raises(InputError, match=f"the graph holds '{change}'"):
        check_graph(graph)


def test_an_input_that_is_no_tensor_is_refused(small: bytes) -> None:
    graph = json.loads(unpack(small)[1]["graph.json"])
    graph["graph_module"]["graph"]["inputs"][-1] = {"as_string": "' or " + CALL}  # would stand in the source of a guard
    with pytest.raises(InputError, match="inputs and outputs of a program are tensors"):
        check_graph(graph)


def test_pickled_weight_is_refused(good: bytes, tmp_path: Path) -> None:
    attack = pickle.dumps({"norm.bias": Planted()})
    assert pickle.loads(attack) and os.environ.pop(PLANTED) == "1"  # it does run when somebody unpickles it
    checkpoint = saved(lambda file: torch.save({"norm.bias": Planted()}, file))
    for member in ("weights.safetensors", "tables.safetensors", "golden.safetensors", "calibration.safetensors"):
        for data in (attack, checkpoint):
            check_refused(tmp_path, forge(good, replace_member(member, data)))


@pytest.mark.parametrize("name", ["data/weights/weight_0", "data/sample_inputs/model.pt", "data/aotinductor/model/a.so", "../../evil.py"])
def test_foreign_members_are_refused(good: bytes, tmp_path: Path, name: str) -> None:
    data = forge(good, replace_member(name, pickle.dumps(Planted())))
    check_refused(tmp_path, data, "holds the members", name)
    assert not (tmp_path.parent.parent / "evil.py").exists()


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), FloorDiv(Symbol('s0', integer=True), Integer(-3)))",
        "Pow(Symbol('s0', positive=True, integer=True), Integer(2))",
        "Max(Integer(1), Mod(Symbol('u0', integer=True), Integer(4)))",
    ],
)
def test_expressions_on_the_list(small: bytes, text: str) -> None:
    check_graph(with_expression(small, text))


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "open('x')",
        "Symbol.__class__",
        "Symbol('a b')",
        "Add('__import__(1)')",
        "Symbol('s0', commutative=True)",
        "(lambda: Integer(1))()",
        "Add(*[Integer(1)])",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Symbol('s0'), Integer(999))",
        "Integer(10**9)",
        f"Integer({2**70})",
        "Integer(1) if 1 else Integer(2)",
        "Integer(1)\nInteger(2)",
        "(" * 3000,
        "Integer(1)" * 1000,
    ],
)
def test_expressions_outside_the_list(small: bytes, text: str) -> None:
    with pytest.raises(InputError, match="expr_str"):
        check_graph(with_expression(small, text))


def with_expression(small: bytes, text: str) -> Graph:
    graph: Graph = copy.deepcopy(json.loads(unpack(small)[1]["graph.json"]))
    graph["graph_module"]["graph"]["tensor_values"]["tokens"]["sizes"][0] = {"as_expr": {"expr_str": text, "hint": None}}
    return graph


# --- programs that can't be written


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)))


def test_what_the_format_cannot_hold_is_named_at_save(tmp_path: Path) -> None:
    inputs = (torch.ones(2),)
    program = Program(torch.export.export(Branching(), inputs), {}, Golden(inputs, inputs))
    with pytest.raises(InputError, match=r"a branch or loop|higher_order\.cond"):
        write_program(program, tmp_path / "model.pt")
    assert os.listdir(tmp_path) == []


def test_a_weight_that_is_not_baked_is_named_at_save() -> None:
    model = nn.Linear(8, 8)
    exported = torch.export.export(model, (torch.ones(1, 8),))
    program = Program(exported, {"weight": random_table(model.weight, d=4)}, Golden((torch.ones(1, 8),), (torch.ones(1, 8),)))
    with pytest.raises(InputError, match="weight has a compressed form, but the graph has no such tensor"):
        program_to_bytes(program)
