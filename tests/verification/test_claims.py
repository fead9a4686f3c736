from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import Written, find_exporters
from qn_deploy.exporting.golden import Vectors, read_vectors
from qn_deploy.exporting.manifest import Manifest, read_manifest
from qn_deploy.verification import claims

NAME = "model.onnx"
SAME = ("model.onnx to the program, written again", "byte-identical", True)


@pytest.fixture(scope="module")
def written() -> Callable[..., Written]:
    """The file of the one program is written once for all tests here."""
    made: list[Written] = []

    def write_once(*arguments: Any) -> Written:
        made.extend([] if made else [write_file(*arguments)])
        return made[0]

    return write_once


@pytest.fixture
def claimed(build: Any, model: Any, written: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str, bool | None]]]:
    monkeypatch.setattr(claims, "write_file", written)

    def check(
        manifest: Callable[[Manifest], Manifest] = lambda same: same, golden: Callable[[Vectors], Vectors] = lambda same: same
    ) -> Any:
        good = read_manifest(build.folder)
        vectors = golden(read_vectors(build.folder, good))
        only = replace(good, files={NAME: good.files[NAME]})
        found = claims.check_claims(manifest(only), vectors, model.program, find_exporters())
        return [(each.what, each.found, each.passed) for each in found]

    return check


def entry(**fields: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: replace(manifest, files={NAME: replace(manifest.files[NAME], **fields)})


def test_a_right_build_is_what_the_program_gives(claimed: Any) -> None:
    assert claimed() == [SAME]


def test_another_file_is_found_though_its_hash_is_right(claimed: Any) -> None:
    what, _, _ = SAME
    assert claimed(entry(sha256="0" * 64)) == [(what, "other bytes", False)]


def test_a_file_of_other_versions_is_told_and_not_judged(claimed: Any) -> None:
    def older(manifest: Manifest) -> Manifest:
        return replace(entry(sha256="0" * 64)(manifest), versions={**manifest.versions, "onnx": "1.0"})

    ((what, found, passed),) = claimed(older)
    assert what == SAME[0] and found.startswith("other bytes; here is onnx ") and passed is None


def test_what_the_manifest_says_otherwise_is_named(claimed: Any) -> None:
    def renamed(manifest: Manifest) -> Manifest:
        return replace(manifest, outputs=(replace(manifest.outputs[0], name="x"),), float_bytes=1)

    assert claimed(renamed) == [("the manifest to the program", "other outputs, float_bytes", False), SAME]
    (line, _) = claimed(entry(inexact=("relu",)))
    assert line == ("model.onnx: the manifest to the program", "inexact is ('relu',), () in the program", False)


@pytest.mark.parametrize("field", ["inputs", "floats"])
def test_other_vectors_are_found(claimed: Any, field: str) -> None:
    def other(vectors: Vectors) -> Vectors:
        first = getattr(vectors, field)[0].clone()
        first.view(-1)[0] = float("nan")
        return replace(vectors, **{field: (first,)})

    assert claimed(golden=other) == [("golden.safetensors to the program", "other inputs or float outputs", False), SAME]
