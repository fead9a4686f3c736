"""Mutations and forgeries of what `load` reads: refused in one line, or the same program as before."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._export import utils

from qn_deploy.errors import InputError, QnDeployError
from qn_deploy.lowering.lower import Activations, Form, lower
from qn_deploy.program.archive import program_to_bytes
from qn_deploy.program.store import load
from tests.faults.trials import REFUSED, SAME, attack, count, forged_zip, mutated, replace_leaf
from tests.program.archives import Words, opened, saved, words_program
from tests.program.archives import forge as forge_members

pytestmark = [pytest.mark.slow, pytest.mark.faults]
FORGED = "accepted: hashes are right, and so is every check"


@pytest.fixture(scope="module")
def model() -> bytes:
    return program_to_bytes(words_program())


@pytest.fixture(scope="module")
def pt2() -> bytes:
    exported = torch.export.export(Words().eval(), (torch.tensor([[1, 2, 39]]),), strict=False)
    return saved(lambda buffer: torch.export.save(exported, buffer))


@pytest.fixture(scope="module", autouse=True)
def _torch_lists_its_operators_once() -> Iterator[None]:
    """It asks each of them again for each .pt2: half of the time that a case takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, (name := "_collect_all_valid_cia_ops_for_namespace"), cache(getattr(utils, name)))
        yield


def outcome(path: Path, data: bytes, expected: bytes | None) -> Callable[[], str]:
    """A case: what becomes of the file. What is accepted is the program `expected`; without one, hashes are right: it is also
    lowered and run, as export would."""

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
            lower(program, Form(Activations.DYNAMIC)).simulate(program.golden.inputs)
        except QnDeployError as error:
            assert "\n" not in str(error)
            return "accepted, and refused when it is lowered or run"
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
    path.write_bytes(pt2)
    load(path)
    cases = [outcome(path, forged_zip(pt2, draw), None) for _ in range(count(10_000, 100))]
    assert attack(capsys, ".pt2, forged with right CRCs", cases)[REFUSED]
