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
from qn_deploy.program.archive import program_to_bytes
from qn_deploy.program.store import load
from tests.program.archives import Graph, forge, refusal, saved


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "model.pt")
    assert "Is a directory" in refusal(tmp_path)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_files_of_other_kinds_are_named_with_the_way_out(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    state = model.state_dict()
    traced = torch.jit.trace(model, torch.ones(1, 2))  # type: ignore[no-untyped-call]
    cases = {
        "is empty": b"",
        "torch.save checkpoint": saved(lambda file: torch.save(state, file)),
        "old torch.save file": saved(lambda file: torch.save(state, file, _use_new_zipfile_serialization=False)),
        "TorchScript": saved(lambda file: torch.jit.save(traced, file)),
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


def test_another_version_says_what_to_do(tmp_path: Path, good: bytes) -> None:
    newer = refusal(tmp_path / "model.pt", forge(good, lambda manifest, members: manifest.update(version=4)))
    assert "format version 4" in newer and "upgrade" in newer
    older = refusal(tmp_path / "model.pt", forge(good, lambda manifest, members: manifest.update(version=2)))
    assert "format version 2 of an earlier qn-deploy" in older and "take the model that it was made from" in older


def test_a_manifest_that_lies_about_a_tensor(tmp_path: Path, good: bytes) -> None:
    def edit(manifest: Graph, members: dict[str, bytes]) -> None:
        entry = next(entry for entry in manifest["tensors"] if entry["name"] == "conv.weight")
        entry["shape"][0] += 1

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


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ranges", {"conv2d": [1, 0]}, "ranges is no map from names to pairs of float32 numbers, the lower one first"),
        ("ranges", {"conv2d": [0, 1e39]}, "ranges is no map"),
        ("ranges", {"conv2d": [0, True]}, "ranges is no map"),
        ("ranges", [["conv2d", 0, 1]], "ranges is no map"),
        ("ranges", {"nowhere": [0, 1]}, "a range for 'nowhere', but the graph has no such node"),
        ("outputs", ["scores", "features"], "the graph has 3 outputs"),
        ("outputs", "abc", "outputs is no list of names"),
        ("classes", {"conv.weight": "Conv2d"}, "classes is no map from names to lists of names"),
        ("provenance", ["compress"], "provenance is no list of configurations"),
        ("notes", [1], "notes is no list of notes"),
        ("notes", ["x" * 10_001], "notes is no list of notes"),
        ("left", {"conv.weight": None}, "left is no map from names to reasons"),
        ("weights", {"conv.weight": "table"}, "weights is no map"),
        ("tensors", {}, "tensors is no list of tensors"),
        ("recipe", "int8", "recipe is no recipe"),
    ],
)
def test_a_manifest_of_the_wrong_kind(tmp_path: Path, good: bytes, key: str, value: object, words: str) -> None:
    assert words in refusal(tmp_path / "model.pt", forge(good, lambda manifest, members: manifest.update({key: value})))
    missing = refusal(tmp_path / "model.pt", forge(good, lambda manifest, members: manifest.pop(key)))
    assert f"the manifest's {key} is no" in missing


def test_numbers_that_are_no_json(tmp_path: Path, good: bytes) -> None:
    data = forge(good, lambda manifest, members: manifest.update(ranges={"conv2d": [float("nan"), 1]}))
    assert "manifest.json is no JSON" in refusal(tmp_path / "model.pt", data)


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
            loaded = load(path)
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
    assert "holds 'manifest.json' compressed" in refusal(tmp_path / "model.pt", buffer.getvalue())
