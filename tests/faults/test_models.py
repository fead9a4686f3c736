"""Mutations and forgeries of what `load` reads: refused in one line, or the same program as before."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qn_deploy.errors import InputError
from qn_deploy.program.archive import program_to_bytes
from qn_deploy.program.store import load
from tests.faults.trials import REFUSED, SAME, count, mutated, tally
from tests.program.archives import Words, opened, saved, words_program
from tests.program.archives import forge as forge_members

pytestmark = [pytest.mark.slow, pytest.mark.faults]
STRANGE = (None, True, 0, -1, 3, 1 << 62, 1.5, 1e300, "", "x", "../x", "a\0b", [], {}, [0], "aten.relu.default")
FORGED = "accepted: hashes are right, and so is every check"


@pytest.fixture(scope="module")
def model() -> bytes:
    return program_to_bytes(words_program())


@pytest.fixture(scope="module")
def pt2() -> bytes:
    exported = torch.export.export(Words().eval(), (torch.tensor([[1, 2, 39]]),), strict=False)
    return saved(lambda buffer: torch.export.save(exported, buffer))


def outcome(path: Path, data: bytes, expected: bytes | None) -> Callable[[], str]:
    """A case: what becomes of the file. What is accepted is the program `expected`; without one, hashes are right: it is also run."""

    def case() -> str:
        path.write_bytes(data)
        try:
            program = load(path)
        except InputError as error:
            assert "\n" not in str(error)
            return REFUSED
        if expected is not None:
            return SAME if program_to_bytes(program) == expected else "silently different"
        try:
            program.exported.module()(*program.golden.inputs)
        except Exception as error:
            return f"accepted, torch refuses to run it: {type(error).__name__}"
        return FORGED

    return case


def forged_graph(data: bytes, draw: random.Random) -> bytes:
    """A model.pt with a few values of graph.json or manifest.json replaced, and every hash right."""

    def edit(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
        graph = json.loads(members["graph.json"])
        for _ in range(draw.randint(1, 3)):
            replace_leaf(draw.choice((graph, graph, manifest)), draw)
        members["graph.json"] = json.dumps(graph).encode()

    return forge_members(data, edit)


def forged_tensors(data: bytes, draw: random.Random) -> bytes:
    """A model.pt with one member mutated, and every hash right."""

    def edit(_: dict[str, Any], members: dict[str, bytes]) -> None:
        name = draw.choice(sorted(members))
        members[name] = mutated(members[name], draw)

    return forge_members(data, edit)


def replace_leaf(tree: Any, draw: random.Random) -> None:
    """Replaces, removes or doubles a value somewhere in JSON."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        if not keys:
            return
        key = draw.choice(keys)
        if not isinstance(tree[key], dict | list) or not tree[key] or draw.random() < 0.1:
            break
        tree = tree[key]
    kind = draw.randrange(4)
    if kind == 0:
        del tree[key]
    elif kind == 1 and isinstance(tree[key], int):
        tree[key] += draw.choice((-1, 1, 7, 1 << 20, -(1 << 40), 1 << 62))
    else:
        tree[key] = draw.choice(
            (None, True, 0, -1, 3, 1 << 62, 1.5, 1e300, "", "x", "../x", "a\0b", [], {}, [0], "aten.relu.default", tree[key])
        )


def forged_zip(data: bytes, draw: random.Random) -> bytes:
    """A .pt2 with one member mutated, its CRC right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([name for name in members if members[name]])
    if name.endswith(".json") and draw.random() < 0.7:
        tree = json.loads(members[name])
        replace_leaf(tree, draw)
        members[name] = json.dumps(tree).encode()
    else:
        members[name] = mutated(members[name], draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def attack(
    capsys: pytest.CaptureFixture[str], what: str, cases: list[Callable[[], str]], allowed: tuple[str, ...] = (REFUSED, SAME)
) -> Counter[str]:
    found = tally(cases)
    with capsys.disabled():
        print(f"\n{what}: {found.total():,} cases, {dict(found)}")
    wrong = [word for word in found if word not in allowed and not word.startswith("accepted")]
    assert not wrong, found
    return found


def test_mutations_of_model_pt(model: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(1)
    path = tmp_path / "model.pt"
    assert attack(capsys, "model.pt, mutated", [outcome(path, mutated(model, draw), model) for _ in range(count(10_000, 300))])[REFUSED]


def test_forgeries_of_model_pt(model: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, cases = random.Random(2), count(10_000, 300)
    forge = (forged_graph, forged_tensors)
    path = tmp_path / "model.pt"
    assert opened(model)
    found = attack(capsys, "model.pt, forged with right hashes", [outcome(path, forge[i % 2](model, draw), None) for i in range(cases)])
    assert found[REFUSED]


def test_mutations_of_pt2(pt2: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, path = random.Random(3), tmp_path / "model.pt2"
    path.write_bytes(pt2)
    same = program_to_bytes(load(path))
    assert attack(capsys, ".pt2, mutated", [outcome(path, mutated(pt2, draw), same) for _ in range(count(10_000, 300))])[REFUSED]


def test_forgeries_of_pt2(pt2: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, path = random.Random(4), tmp_path / "model.pt2"
    assert attack(capsys, ".pt2, forged with right CRCs", [outcome(path, forged_zip(pt2, draw), None) for _ in range(count(10_000, 300))])[
        REFUSED
    ]
