"""The scripts of examples/ run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qn_deploy.exporting.manifest import read_manifest

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_goes_the_whole_road(name: str, tmp_path: Path) -> None:
    for package in ("transformers", "timm"):
        if package in name:
            pytest.importorskip(package)
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.search(r"all \d+ checks passed", done.stdout)
    assert any(weight.is_table for weight in read_manifest(tmp_path / "build").weights.values())
    if gain := re.search(r"gain: ([\d.-]+) points", done.stdout):
        assert float(gain[1]) > 5  # 11.9 where it was written


def test_the_readme_tells_of_each() -> None:
    told = re.findall(r"^\| `(\w+)\.py` \|", (FOLDER / "README.md").read_text(), re.MULTILINE)
    assert sorted(told) == SCRIPTS
