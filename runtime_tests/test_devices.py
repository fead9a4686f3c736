"""Every fixture on other machines: the same files, the real runtimes of 64-bit ARM. README.md in this folder says what is promised."""

from __future__ import annotations

from collections.abc import Callable
from itertools import repeat
from typing import Any

import pytest

from qn_deploy.exporting.exporter import find_exporters
from qn_deploy.exporting.golden import read_vectors
from qn_deploy.exporting.isolated import Run
from qn_deploy.verification.devices.climb import climb as climb_on
from qn_deploy.verification.devices.device import Device
from qn_deploy.verification.devices.run import Timed, run_on
from qn_deploy.verification.judge import identical, judge

pytestmark = pytest.mark.device


def test_a_device_climbs_rungs_3_and_4(climb: Any, device: Device) -> None:
    manifest = climb.report.manifest
    golden = read_vectors(climb.folder, manifest)
    runs, here = {}, {}
    for name, entry in manifest.files.items():
        exporter, data = find_exporters()[entry.exporter], (climb.folder / name).read_bytes()
        runs[name] = Run(data), Run(exporter.dense(data))
        (here[name],) = exporter.run(data, (golden.inputs,))
    found = {(check.rung, check.what): check for check in climb_on(device, manifest, golden, runs, here)}
    is_static = manifest.activations.startswith("static")
    what = "integer reference" if is_static else "simulation"
    expected = set()
    for name in manifest.files:
        on = f"{name} on {device.name}"
        expected |= {(3, f"{on} to {what}"), (4, f"{on}, tables to dense weights"), (4, f"{on} to this machine")}
    if is_static and len(manifest.files) == 2:
        expected.add((4, f"model.onnx to model.pte on {device.name}"))
    assert found.keys() == expected
    failed = {key: check.found for key, check in found.items() if check.passed is False}
    assert failed == {}, [climb.layers(entry.exporter, device) for entry in manifest.files.values()]
    if is_static:  # also where an operator has no exact rule
        differing = {key: check.found for key, check in found.items() if "this machine" in key[1] and check.found != "bit-identical"}
        assert differing == {}


def test_kleidiai_changes_nothing_that_matters(climbs: Callable[[str], Any], device: Device) -> None:
    """It is off in verification (mlas.disable_kleidiai), and may be on in an application."""
    climb = climbs("MLP, dynamic")
    manifest = climb.report.manifest
    inputs, run = read_vectors(climb.folder, manifest).inputs, Run((climb.folder / "model.onnx").read_bytes())
    (off,), (on,) = (run_on(device, "onnx", (run,), inputs, options=("--config", f"mlas.disable_kleidiai={flag}")) for flag in (1, 0))
    assert isinstance(off, Timed)
    assert isinstance(on, Timed)
    assert judge(4, "", on.outputs, off.outputs, manifest, manifest.files["model.onnx"], repeat(identical)).found == "bit-identical"
