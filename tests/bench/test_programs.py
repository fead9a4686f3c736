from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from qn_deploy.bench.programs import bench
from qn_deploy.cli import main
from qn_deploy.errors import InputError
from qn_deploy.exporting.exporter import find_exporters

KINDS = ("tables", "dense int8", "float", "the runtime's own int8")


@pytest.mark.slow
def test_files_are_timed_beside_dense_int8_float_and_the_runtimes_own_int8(model: Any, build: Any, tmp_path: Path) -> None:
    options = ["--rounds", "4", "--batch", "1", "--batch", "5", "--plot", str(tmp_path / "times.svg"), "--json"]
    result = CliRunner().invoke(main, ["bench", str(build.folder), "--model", str(model.path), *options])
    assert result.exit_code == 0, result.output
    assert "left out" not in result.stderr, result.stderr
    found = json.loads(result.stdout)
    names = [f"{file}, {what}" for file in ("model.pte", "model.onnx") for what in KINDS]
    assert sorted((each["name"], each["batch"]) for each in found) == sorted((name, batch) for name in names for batch in (1, 5))
    for each in found:
        assert 0 < each["p50_ms"] <= each["p90_ms"] and each["load_ms"] > 0 and each["first_ms"] > 0 and each["memory_mb"] > 0
    assert all(each["resident_mb"] is not None and each["resident_mb"] < each["memory_mb"] for each in found if sys.platform == "linux")
    sizes = {each["name"]: each["bytes"] for each in found}
    assert sizes["model.onnx, tables"] == (build.folder / "model.onnx").stat().st_size
    for file in ("model.pte", "model.onnx"):
        assert sizes[f"{file}, tables"] < sizes[f"{file}, float"]
    assert sizes["model.pte, tables"] < sizes["model.pte, dense int8"] < sizes["model.pte, float"]
    drawn = ElementTree.parse(tmp_path / "times.svg").getroot()
    assert drawn.tag.endswith("svg") and all(name in (tmp_path / "times.svg").read_text() for name in names)


@pytest.mark.slow
def test_the_runtimes_own_int8_is_int8_and_near_the_float_model(model: Any) -> None:
    from dataclasses import replace

    from qn_deploy.exporting.export import write_file
    from qn_deploy.lowering.lower import Activations
    from qn_deploy.verification.numerics import compare

    whole = replace(model.program, weights={})
    for exporter in find_exporters().values():
        plain = write_file(exporter, whole, Activations.NONE).data
        data = exporter.own_int8(whole, plain, model.inputs, True)  # type: ignore[attr-defined]
        (expected,) = exporter.run(plain, (model.inputs,))
        (ours,) = exporter.run(data, (model.inputs,))
        assert len(data) < len(plain)
        assert 15 < compare(ours[0], expected[0]).sqnr_db < 60  # rounded to int8, and not more than that


def test_what_is_no_build_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        bench(tmp_path, None)
