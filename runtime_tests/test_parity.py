"""Every fixture climbs the parity ladder on every runtime of this machine. README.md in this folder says what is promised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.lowering.lower import lower
from qn_deploy.verification.judge import MIN_SQNR_DB
from qn_deploy.verification.numerics import compare
from runtime_tests.conftest import FIXTURES, lanes_of

EXACT = (  # bit for bit the integer reference
    *("conv net, static", "residual conv net, static", "linear, static"),
    *("K=16 d=2 G=8, static", "K=2048, residual and int4, static", "int8 without tables, static", "linear without bias, static"),
    "tables in memory, static",
    *("ResNet-20, static", "ResNet-20, QNNPACK", "demo's network, static", "concatenated branches, static"),
    *("inverted residual with ReLU6, static", "multiplied branches, static", "gates and curves, static"),
    *("conv1d and conv transpose 1d, static", "conv transpose in groups, static"),
)


def verdicts(climb: Any, name: str) -> dict[tuple[int, str], tuple[str, bool | None]]:
    """What was found of the file `name`: {(rung, limit): (found, passed)}; rung 4 between runtimes is left out."""
    checks = [
        check
        for check in climb.report.checks
        if check.what.startswith(name) and " to model." not in check.what and "without an exact rule" not in check.what
    ]
    return {(check.rung, check.limit): (check.found, check.passed) for check in checks}


def test_a_lane_climbs_every_rung(climb: Any, lane: str) -> None:
    found = verdicts(climb, find_exporters()[lane].filename)
    # Each rung is there: a check that went missing would pass in silence.
    assert [rung for rung, _ in found] == [1, 3, 4]  # rung 2 is told where rung 3 fails
    # Of a program without tables, rung 1 has nothing to judge.
    judged = {key: (what, passed) for key, (what, passed) in found.items() if what != "0 of 0 tables"}
    assert {key: what for key, (what, passed) in judged.items() if not passed} == {}, climb.layers(lane)


@pytest.mark.slow
def test_each_layer_agrees_by_itself(climb: Any, lane: str) -> None:
    check = climb.layers(lane)
    assert check.passed, check.found


def test_every_table_is_in_the_file(climb: Any, lane: str) -> None:
    weights = climb.report.manifest.weights.values()
    tables = sum(entry.is_table for entry in weights)
    assert tables >= 1 or {entry.kind for entry in weights} == {"int8"}
    assert verdicts(climb, find_exporters()[lane].filename)[1, "exact"][0] == f"{tables} of {tables} tables"


def test_a_file_is_little_more_than_its_theory(climb: Any, lane: str) -> None:
    manifest = climb.report.manifest
    assert manifest.files[find_exporters()[lane].filename].bytes <= 1.05 * manifest.theoretical_bytes + 24 * 1024


def test_tables_compute_what_dense_weights_compute(climb: Any, lane: str) -> None:
    assert verdicts(climb, find_exporters()[lane].filename)[4, "bit-identical"][0] == "bit-identical"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tables in memory, static", "tables in memory, dynamic"])
def test_tables_stay_tables(climbs: Callable[[str], Any], name: str, lane: str) -> None:
    memory = climbs(name).report.manifest.files[find_exporters()[lane].filename].memory
    kept = {weight: 0 < entry.compressed < entry.expanded for weight, entry in memory.items()}
    assert kept == {"0.weight": True, "2.weight": True, "4.weight": False}  # the last takes less as int8


@pytest.mark.parametrize("name", lanes_of(EXACT))
def test_an_exact_program_is_bit_identical_to_the_integer_reference(climbs: Callable[[str], Any], name: str, lane: str) -> None:
    climb = climbs(name)
    assert {entry.inexact for entry in climb.report.manifest.files.values()} == {()}
    assert verdicts(climb, find_exporters()[lane].filename)[3, "bit-identical"][0] == "bit-identical"


def test_a_single_layer_is_bit_identical_to_the_simulation(climbs: Callable[[str], Any]) -> None:
    climb, exporter = climbs("linear, static"), find_exporters()["onnx"]
    inputs = climb.program.golden.inputs
    (found,) = exporter.run((climb.folder / exporter.filename).read_bytes(), (inputs,), optimized=False)
    simulated = lower(climb.program, exporter.forms(climb.activations, exporter.options())[0]).simulate(inputs)
    assert [torch.equal(one, other) for one, other in zip(found, simulated, strict=True)] == [True]


@pytest.mark.parametrize("name", lanes_of(EXACT))
def test_static_runtimes_agree_with_each_other(climbs: Callable[[str], Any], name: str) -> None:
    report = climbs(name).report
    if len(report.manifest.files) < 2:
        pytest.skip(f"only {', '.join(report.manifest.files)} runs here")
    (check,) = [check for check in report.checks if check.what == "model.onnx to model.pte"]
    assert (check.rung, check.limit, check.passed) == (4, "<= 1 step", True), check.found


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("name", lanes_of(EXACT))
def test_every_batch_size_up_to_the_largest(climbs: Callable[[str], Any], name: str, batch: int, lane: str) -> None:
    climb, exporter = climbs(name), find_exporters()[lane]
    shape = climb.program.golden.inputs[0].shape[1:]
    inputs = (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch)),)
    (expected,) = climb.reference(exporter.rules)(inputs)
    ((found,),) = exporter.run((climb.folder / exporter.filename).read_bytes(), (inputs,))
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRU, dynamic", "LSTM, dynamic", "Transformer, dynamic"])
def test_dynamic_programs_take_every_batch_size_too(climbs: Callable[[str], Any], name: str, lane: str) -> None:
    climb, exporter = climbs(name), find_exporters()[lane]
    assert "takes only" not in str(climb.report.manifest.files[exporter.filename].facts)
    simulated = lower(climb.program, exporter.forms(climb.activations, exporter.options())[0])
    batches = tuple((FIXTURES[name].inputs(batch),) for batch in (1, 7, 32))
    found = exporter.run((climb.folder / exporter.filename).read_bytes(), batches)
    for inputs, (output,) in zip(batches, found, strict=True):
        (expected,) = simulated.simulate(inputs)
        assert compare(output, expected).sqnr_db >= MIN_SQNR_DB
