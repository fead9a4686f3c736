from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from qn_deploy.cli import main
from qn_deploy.exporting.exporter import WeightMemory
from qn_deploy.report.facts import Facts, gather
from qn_deploy.report.page import page
from qn_deploy.report.tables import as_text, memory_table
from qn_deploy.verification.judge import Check

LARGEST = 1 << 20  # bytes of a page


@pytest.fixture(scope="module")
def facts(model: Any, build: Any) -> Facts:
    checks = (Check(1, "model.onnx: <weights>", "1 of 1", "exact", True), Check(5, "loss", "SQNR 7 dB", "reported", None))
    found = gather(build.folder, model.program, checks)
    return replace(
        found, frontier=((1.0, 10.0), (2.0, 20.0)), chosen=(2.0, 20.0), gap=0.01, losses={"stem.weight": 31.5, "head.weight": 12.0}
    )


def test_a_page_holds_all_and_loads_nothing(facts: Facts) -> None:
    text = page(facts)
    assert len(text.encode()) < LARGEST
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(charts) == 5
    for chart in charts:
        ElementTree.fromstring(chart)
        assert "var(--text)" in chart and "#010203" not in chart
    assert not re.search(r"""(src|href)=["'](?!data:|#)|@import|url\((?!#)|<script""", text)
    for said in (
        *facts.manifest.weights,
        *facts.hashes.values(),
        *facts.manifest.versions,
        "model.onnx: &lt;weights&gt;",
        "at most 1.0 %",
        "Loss by layer",
    ):
        assert said in text
    assert text == page(facts)


def test_without_the_model_and_the_ladder_it_says_so(build: Any) -> None:
    text = page(gather(build.folder, None, None))
    assert "Not run." in text and "Ranges of activations" not in text and "Frontier" not in text and "Loss by layer" not in text


def test_the_memory_of_tables_is_told_where_some_stay(facts: Facts) -> None:
    name, entry = next(iter(facts.manifest.files.items()))
    memory = {"stem.weight": WeightMemory(60_000, 15_001), "head.<weight>": WeightMemory(640)}
    manifest = replace(facts.manifest, files={**facts.manifest.files, name: replace(entry, memory=memory)})
    text = page(replace(facts, manifest=manifest))
    assert f"Memory of tables, {name}" in text and "head.&lt;weight&gt;" in text and "15,001" in text
    assert "All 15.3 KB instead of 59.2 KB." in text
    assert "Memory of tables" not in page(facts)
    lines = as_text(memory_table(manifest)).splitlines()
    assert [cell.strip() for cell in lines[-2].strip("│").split("│")] == ["all", "60,640", "15,001", "15,641"]
    assert as_text(memory_table(facts.manifest)) == ""


def test_a_failed_check_is_seen(facts: Facts) -> None:
    failed = replace(facts, checks=(Check(3, "model.pte", "2 steps", "1 step", False),), passed=False)
    assert '<span class="bad">FAIL</span>' in page(failed) and '<b class="bad">failed</b>' in page(failed)


def test_the_command_writes_it_into_the_build(model: Any, build: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(build.folder, tmp_path / "build"))
    result = CliRunner().invoke(main, ["report", str(folder), "--model", str(model.path), "--no-verify", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said == {"out": str(folder / "report.html"), "bytes": (folder / "report.html").stat().st_size, "passed": None}
    refused = CliRunner().invoke(main, ["report", str(tmp_path), "--no-verify"])
    assert refused.exit_code == 2 and "holds no manifest.json" in refused.stderr
