from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qn_deploy.errors import InputError
from qn_deploy.recipe.methods import Int4
from qn_deploy.report.facts import gather, largest, layer_losses, parts_of, use_of
from qn_deploy.weights.compressed import IntWeight, PQWeight


def table(codes: list[list[int]], centroids: int = 4, residual: PQWeight | None = None) -> PQWeight:
    books = torch.arange(centroids * 2, dtype=torch.int8).reshape(1, centroids, 2)
    rows = torch.tensor(codes, dtype=torch.uint8)
    return PQWeight(rows, books, torch.ones(len(codes)), (len(codes), 2 * len(codes[0])), residual)


def test_the_parts_of_a_weight_are_all_of_its_bytes() -> None:
    plain = table([[0, 1], [2, 3]])
    assert parts_of(plain) == {"codes": 2, "centroids": 8, "scales": 8}
    assert parts_of(table([[0, 1], [2, 3]], residual=plain)) == {"codes": 4, "centroids": 16, "scales": 8}
    weight = torch.randn(6, 5)
    for each in (IntWeight.from_float(weight), IntWeight.from_float(weight, method=Int4()), plain):
        assert sum(parts_of(each).values()) == each.nbytes
    assert parts_of(IntWeight.from_float(weight, method=Int4())) == {"int4": 15, "scales": 24}


def test_the_use_of_a_codebook() -> None:
    half = use_of(table([[0, 1], [1, 0]]))
    assert (half.centroids, half.codebooks, half.share, half.bits) == (4, 1, 0.5, pytest.approx(1.0))
    assert use_of(table([[0, 0], [0, 0]])).bits == 0


def test_small_layers_are_summed_up() -> None:
    layers = {f"layer{index}": {"int8": index, "scales": 1} for index in range(50)}
    kept = largest(layers)
    assert len(kept) == 41 and list(kept)[:2] == ["layer10", "layer11"]
    assert kept["10 smaller ones"] == {"int8": 45, "scales": 10}
    assert sum(sum(parts.values()) for parts in kept.values()) == sum(sum(parts.values()) for parts in layers.values())


def test_the_kinds_are_all_constants(model: Any, build: Any, tmp_path: Path) -> None:
    for program in (model.program, None):
        facts = gather(build.folder, program, None)
        assert sum(facts.kinds.values()) == facts.manifest.theoretical_bytes
        assert bool(facts.ranges) == (program is not None) and facts.checks is None
    assert set(facts.outputs) == {"model.onnx", "model.pte"}
    assert all(-20 < value < 80 for outputs in facts.outputs.values() for value in outputs.values())
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        gather(tmp_path, None, None)


@pytest.mark.parametrize(("noted", "tuned"), [((True, False), True), ((True, True), False), ((False, True), False)])
def test_losses_from_before_tuning_are_told(model: Any, build: Any, noted: tuple[bool, bool], tuned: bool) -> None:
    losses = {"sqnr_db": {"stem.weight": 9.0}}
    stages = tuple({"stage": stage, **(losses if known else {})} for stage, known in zip(("ipq", "tune"), noted, strict=True))
    facts = gather(build.folder, replace(model.program, provenance=stages), None)
    assert facts.tuned is tuned and facts.losses == {"stem.weight": 9.0}


def test_the_loss_of_layers_is_what_compression_noted() -> None:
    noted = {f"layer{index}": float(index % 50) for index in range(60)}
    found = layer_losses([{"stage": "plan"}, {"stage": "compress", "sqnr_db": noted}])
    assert len(found) == 40 and list(found) == [name for name in noted if name in found]
    assert max(found.values()) <= min(value for name, value in noted.items() if name not in found)
    assert layer_losses([{"sqnr_db": noted}, {"stage": "tune", "sqnr_db": {"layer0": 2}}, {"stage": "calibrate"}]) == {"layer0": 2.0}
    for forged in ([], [{"sqnr_db": [1]}], [{"sqnr_db": {"layer": "high"}}]):
        assert layer_losses(forged) == {}
