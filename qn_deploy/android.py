"""`qn-deploy android`: puts a build folder among the assets of the demo app, where each file is checked by its hash before it is loaded."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qn_deploy.errors import InputError
from qn_deploy.exporting.manifest import GOLDEN, MANIFEST, Manifest, read_listed, read_manifest
from qn_deploy.files import make_folder, read_bytes, write_atomic

APP_MANIFEST = Path("app/src/main/AndroidManifest.xml")
MODELS = Path("app/src/main/assets/models")
INDEX = "index.json"


@dataclass(frozen=True)
class Bundled:
    """What went into the app: the model's folder, and the bytes of each of its files by name."""

    folder: Path
    files: dict[str, int]


def model_name(build: Path) -> str:
    """What a model is called after its build folder: the folder's name, or of the one above if that is just `build`."""
    folder = build.resolve()
    return folder.parent.name if folder.name == "build" else folder.name


def bundle(build: Path, app: Path, name: str, pte: bool = False) -> Bundled:
    """Copies a build into the assets of an app, in place of a model of the same name, and lists it in models/index.json.

    The chain of hashes starts in the index, which is part of the signed APK: it has the SHA-256 of manifest.json, which has all others.

    Args:
        build: a folder that export wrote.
        app: the folder of the app's project, as `android_demo`.
        name: what the model is called there.
        pte: also take model.pte where there is model.stock.qnz, for an app that links our native backend.

    Raises:
        InputError: the build or the app is none, a file differs from its hash in the manifest, or there is nothing that the app can run.
    """
    manifest = read_manifest(build)
    if not (app / APP_MANIFEST).is_file():
        raise InputError(f"{app} holds no {APP_MANIFEST}; give the folder of the app's project: --app android_demo")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise InputError(f"{name!r} can't be the name of a model in the app; use letters, digits, - and _: --name digits")
    programs = list(_programs(manifest, pte))
    if not programs:
        raise InputError(f"{build} holds nothing that the app runs ({', '.join(manifest.files)}); export for onnx or executorch")
    data = {file: read_listed(build, file, manifest) for file in (*programs, GOLDEN)}
    data[MANIFEST] = manifest.to_json().encode()
    models = app / MODELS
    index = _read_index(models / INDEX)
    index[name] = {"files": sorted(programs), "manifest_sha256": hashlib.sha256(data[MANIFEST]).hexdigest()}
    make_folder(models / name)
    for file, content in data.items():
        write_atomic(models / name / file, content)
    write_atomic(models / INDEX, (json.dumps({"models": index}, indent=1, sort_keys=True) + "\n").encode())
    for stale in (models / name).iterdir():
        if stale.name not in data:
            stale.unlink()
    return Bundled(models / name, {file: len(content) for file, content in data.items()})


def _programs(manifest: Manifest, pte: bool) -> Iterator[str]:
    """Names of the files that the app runs."""
    for name, entry in manifest.files.items():
        if entry.parts:
            raise InputError(f"{name} is kept in {1 + len(entry.parts)} files, as it is larger than 2 GB; that is too large for an app")
        if entry.exporter == "onnx" or (entry.exporter == "executorch" and (pte or not entry.companions)):
            yield name  # a .pte without a container needs no backend of ours
        if entry.exporter in ("onnx", "executorch"):
            yield from entry.companions


def _read_index(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        models: dict[str, Any] = json.loads(read_bytes(path))["models"]
        return dict(models)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); remove {path.parent} and bundle its models again") from None
