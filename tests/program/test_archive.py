from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qn_deploy.errors import InputError
from qn_deploy.program.archive import program_from_bytes, program_to_bytes
from qn_deploy.program.program import Golden, Program
from qn_deploy.program.store import load, save
from qn_deploy.recipe import Int4
from qn_deploy.weights.compressed import IntWeight, PQWeight
from tests.program.archives import conv_program, make_program, opened, random_table, run, same, words_program


def test_a_program_comes_back_as_it_was(program: Program, tmp_path: Path) -> None:
    save(program, tmp_path / "model.pt")
    loaded = load(tmp_path / "model.pt")
    assert same(loaded.golden.inputs, program.golden.inputs) and same(loaded.golden.outputs, program.golden.outputs)
    for field in ("outputs", "ranges", "recipe", "left", "classes", "provenance", "notes", "inputs"):
        assert getattr(loaded, field) == getattr(program, field), field
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


def test_a_tied_weight_is_stored_once(good: bytes) -> None:
    stored = safetensors.torch.load(opened(good)[1]["weights.safetensors"])
    assert not {"first.weight", "tied.weight", "conv.weight"} & set(stored)  # they are decoded from their tables
    assert {"first.weight", "tied.weight"} & set(program_from_bytes(good).exported.state_dict) == {"first.weight"}


def test_float_tensors_of_the_same_values_in_memory_are_stored_once() -> None:
    exported = torch.export.export(Two(), (torch.randn(1, 4),))
    data = program_to_bytes(Program(exported, Golden((torch.randn(1, 4),), (torch.randn(1, 4),)), ("output",)))
    assert set(safetensors.torch.load(opened(data)[1]["weights.safetensors"])) == {"first"}
    state_dict = program_from_bytes(data).exported.state_dict
    assert torch.equal(state_dict["second"], state_dict["first"])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.randn(4))
        self.register_buffer("second", self.first.detach())  # another tensor on the same memory

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.first + self.second,)


def test_integer_inputs_and_local_codebooks() -> None:
    program = words_program()
    loaded = program_from_bytes(program_to_bytes(program))
    assert loaded.golden.inputs[0].dtype == torch.int64
    assert (loaded.ranges, loaded.recipe, loaded.left, loaded.provenance, loaded.notes) == ({}, None, {}, (), ())
    tokens = (torch.tensor([[3, 0, 21]]),)
    assert same(run(loaded.exported.module(), tokens), run(program.exported.module(), tokens))


def test_an_input_given_twice_and_a_channels_last_weight() -> None:
    model = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
    image = torch.randn(1, 4, 5, 5)
    exported = make_program(model, {}, (image,)).exported
    program = Program(exported, Golden((image,), (image,)), ("output",))
    loaded = program_from_bytes(program_to_bytes(program))
    assert loaded.exported.state_dict["weight"].stride() == model.weight.stride() == (36, 1, 12, 4)
    assert same(run(loaded.exported.module(), (image,)), run(program.exported.module(), (image,)))


SIZES = st.integers(1, 16) | st.integers(17, 256) | st.integers(257, 2048)


@pytest.mark.slow
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


def test_members_are_stored_in_a_fixed_order_and_date(good: bytes) -> None:
    assert good[:30] == b"PK\3\4\x14\0\0\0\0\0\0\0\x21\0" + good[14:26] + b"\x0d\0\0\0"  # not deflated, 1980-01-01, no extra field
    assert good[30:].startswith(b'manifest.json{"format": "qn-deploy", "version": 3, "members": {"graph.json": {"sha256": "')
    entries = zipfile.ZipFile(io.BytesIO(good)).infolist()
    assert [entry.filename for entry in entries] == [
        "manifest.json",
        "graph.json",
        "weights.safetensors",
        "tables.safetensors",
        "golden.safetensors",
    ]
    assert {(entry.compress_type, entry.date_time) for entry in entries} == {(0, (1980, 1, 1, 0, 0, 0))}


def test_there_is_no_pickle_and_no_path_of_this_machine(good: bytes) -> None:
    assert b"pickle" not in good and b"\x80\x02" not in opened(good)[1]["graph.json"]
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
    _, members = opened(program_to_bytes(make_program(model, {"0.weight": table, "1.weight": int4}, (torch.randn(1, 4),))))
    stored = safetensors.torch.load(members["tables.safetensors"])
    assert bytes(stored["0.weight.codes"].tolist()) == bytes.fromhex("21 43 65 87 a9 fb")
    assert bytes(stored["1.weight.values"].tolist()) == bytes.fromhex("f1 97 20")
    assert stored["0.weight.codes"].dtype == stored["1.weight.values"].dtype == torch.uint8


def test_the_same_program_gives_the_same_bytes(program: Program, good: bytes) -> None:
    assert program_to_bytes(program) == good
    assert program_to_bytes(program_from_bytes(good)) == good
    assert program_to_bytes(conv_program()) == good


def test_tensors_without_memory_of_their_own_give_the_same_bytes_after_loading() -> None:
    model, flat = nn.Linear(4, 3), torch.randn(20)
    model.weight, model.bias = (
        nn.Parameter(flat[5:17].reshape(3, 4)),
        nn.Parameter(flat[0:1].expand(3)),
    )  # parts of one, as sharding lays them
    program = make_program(model, {}, (torch.randn(1, 4),))
    data = program_to_bytes(program)
    loaded = program_from_bytes(data)
    assert program_to_bytes(loaded) == data
    assert torch.equal(loaded.exported.state_dict["weight"], flat[5:17].reshape(3, 4))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ranges": {"nowhere": (0.0, 1.0)}}, "a range for 'nowhere', but the graph has no such node"),
        ({"outputs": ("scores",)}, "the graph has 3 outputs"),
        ({"outputs": ("scores", "scores", "scaled")}, "the graph has 3 outputs"),
    ],
)
def test_names_that_the_graph_does_not_have_are_refused(program: Program, change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        program_to_bytes(replace(program, **change))


@pytest.mark.slow
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
                return self.a(x) + self.b(y), (x * x.shape[0]).relu()

        torch.manual_seed(0)
        inputs, batch = (torch.randn(2, 4), torch.randn(2, 4)), torch.export.Dim("batch")
        exported = torch.export.export(Net().eval(), inputs, dynamic_shapes=({0: batch}, {0: batch}))
        print(hashlib.sha256(program_to_bytes(Program(exported, Golden(inputs, inputs), ("u", "v")))).hexdigest())
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


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)))


def test_what_the_format_cannot_hold_is_named_at_save(tmp_path: Path) -> None:
    inputs = (torch.ones(2),)
    program = Program(torch.export.export(Branching(), inputs), Golden(inputs, inputs), ("output",))
    with pytest.raises(InputError, match=r"a branch or loop|higher_order\.cond"):
        save(program, tmp_path / "model.pt")
    assert os.listdir(tmp_path) == []


def test_a_weight_that_is_not_baked_is_named_at_save() -> None:
    model = nn.Linear(8, 8)
    exported = torch.export.export(model, (torch.ones(1, 8),))
    golden = Golden((torch.ones(1, 8),), (torch.ones(1, 8),))
    program = Program(exported, golden, ("output",), {"weight": random_table(model.weight, d=4)})
    with pytest.raises(InputError, match="weight has a compressed form, but the graph has no such tensor"):
        program_to_bytes(program)
