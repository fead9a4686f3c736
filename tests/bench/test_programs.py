from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from qn_deploy.bench.programs import bench
from qn_deploy.cli import main
from qn_deploy.errors import InputError


@pytest.mark.slow
def test_files_are_timed_beside_dense_int8_and_float(model: Any, build: Any) -> None:
    result = CliRunner().invoke(
        main, ["bench", str(build.folder), "--model", str(model.path), "--rounds", "8", "--batch", "1", "--batch", "5", "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [f"{file}, {what}" for file in ("model.pte", "model.onnx") for what in ("tables", "dense int8", "float")]
    assert sorted((each["name"], each["batch"]) for each in found) == sorted((name, batch) for name in names for batch in (1, 5))
    for each in found:
        assert 0 < each["p50_ms"] <= each["p90_ms"] and each["load_ms"] > 0 and each["first_ms"] > 0 and each["memory_mb"] > 0
    sizes = {each["name"]: each["bytes"] for each in found}
    assert sizes["model.onnx, tables"] == (build.folder / "model.onnx").stat().st_size
    assert sizes["model.pte, tables"] < sizes["model.pte, dense int8"] < sizes["model.pte, float"]


def test_a_batch_that_is_fixed_is_refused(build: Any, tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"holds no manifest\.json"):
        bench(tmp_path, None)
