"""The app's screens, as Android 15's own framework draws them here; and hundreds of damaged files, each refused on the screen."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qn_deploy.android import APP_MANIFEST, MODELS, bundle

APP = Path(__file__).parents[2] / "android_demo"
TIMEOUT_S = 1200
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def assets(digits: Path, build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of assets: an app with two models, one with damaged ones, an empty one."""
    root = tmp_path_factory.mktemp("assets")
    app = root / "app"
    (app / APP_MANIFEST).parent.mkdir(parents=True)
    (app / APP_MANIFEST).touch()
    bundle(digits, app, "digits")
    bundle(build.folder, app, "small")
    whole = app / MODELS.parent
    for name in ("good", "damaged", "empty"):
        (root / "all" / name).mkdir(parents=True)
    shutil.copytree(whole, root / "all/good", dirs_exist_ok=True)
    damage(whole / "models", root / "all/damaged/models")
    empty = root / "all/empty/models/index.json"
    empty.parent.mkdir()
    empty.write_text('{"models": {}}')
    return root / "all"


def damage(models: Path, target: Path) -> None:
    """Models of which one file each has a flipped bit, is cut off, goes on after its end, is missing, empty, or the other model's."""
    index = json.loads((models / "index.json").read_text())["models"]
    damaged = {}
    for model, other in (("digits", "small"), ("small", "digits")):
        for file in (*index[model]["files"], "manifest.json", "golden.safetensors"):
            data = (models / model / file).read_bytes()
            kinds: dict[str, bytes | None] = {
                f"bit-{at}": data[: len(data) * at // 22]
                + bytes([data[len(data) * at // 22] ^ 1 << at % 8])
                + data[len(data) * at // 22 + 1 :]
                for at in range(20)
            }
            kinds |= {"cut": data[:-1], "longer": data + b"\0", "empty": b"", "missing": None}
            kinds["swapped"] = (models / other / file).read_bytes()
            for kind, content in kinds.items():
                name = f"{model}-{file.replace('.', '-')}-{kind}"
                shutil.copytree(models / model, target / name)
                damaged[name] = index[model]
                if content is None:
                    (target / name / file).unlink()
                else:
                    (target / name / file).write_bytes(content)
    (target / "index.json").write_text(json.dumps({"models": damaged}))


def test_every_screen(assets: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(APP / "tools"))
        if reason := importlib.import_module("toolchain").missing(["javac", "mvn", "npm", "aapt2", "gcc", "readelf"]):
            pytest.skip(reason)
    command = [sys.executable, APP / "tools/screens.py", assets, tmp_path / "screens"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-3000:]
    assert len(list((APP / "screen_tests/screens").glob("*.png"))) >= 14
    assert {path.name for path in (APP / "screen_tests/screens").glob("*.png")} == {path.name for path in (tmp_path / "screens").iterdir()}
