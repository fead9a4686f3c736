"""A third exporter: a package of somebody else's, installed by pip, that the plain commands find, run and verify."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qn_deploy.exporting.manifest import read_manifest

pytestmark = pytest.mark.slow
COMMAND = Path(sys.executable).with_name("qn-deploy")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package in it."""
    base = tmp_path_factory.mktemp("third")
    source = shutil.copytree(Path(__file__).with_name("third"), base / "source")  # pip builds beside the sources
    flags = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, "--target", base / "site", source], check=True)
    return base / "site"


def run(site: Path, *arguments: object) -> str:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_it_is_found_run_and_verified_by_the_plain_commands(model: Any, site: Path, tmp_path: Path) -> None:
    assert "third: a word that the manifest repeats." in " ".join(run(site, "export", "--help").split())
    folder = tmp_path / "build"
    run(site, "export", model.path, "--out", folder, "--third-label", "hello")
    manifest = read_manifest(folder)
    assert [entry.exporter for entry in manifest.files.values()] == ["onnx", "executorch", "third"]
    entry = manifest.files["model.third.npz"]
    assert (entry.activations, entry.steps, entry.inexact, entry.facts) == ("none", (None,), (), {"label": "hello"})
    assert manifest.config.options == {"third": {"label": "hello"}}
    report = json.loads(run(site, "verify", folder, "--layers", model.path, "--json"))
    assert report["passed"]
    checks = {(check["rung"], check["what"]): check["passed"] for check in report["checks"]}
    for line in [
        (1, "model.third.npz: weights decode to the table"),
        (3, "model.third.npz to simulation"),
        (3, "model.third.npz, layer by layer"),
        (4, "model.third.npz, tables to dense weights"),
    ]:
        assert checks[line] is True, line
    assert (4, "model.onnx to model.pte") in checks
    assert not [what for _, what in checks if what.startswith("model.onnx to model.third")]  # one static, one float
