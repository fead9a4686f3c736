"""Files that are no model.pt, and a model.pt that was damaged."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from qn_deploy.errors import InputError
from qn_deploy.program.archive import program_to_bytes, read_program
from qn_deploy.program.program import Program
from qn_deploy.weights.compressed import PQWeight
from tests.program.archives import Graph, forge, refusal, saved


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
