"""The zip around a program: fixed member names, order and dates, nothing deflated, a hash for every member. Its members:

manifest.json             format, version, sha256 and size of each other member; the rest is archive.py's
graph.json                the exported graph
weights.safetensors       tensors that have no compressed form
tables.safetensors        compressed forms
golden.safetensors        example inputs and float outputs
"""

from __future__ import annotations

import io
import json
import zipfile
from hashlib import sha256
from typing import Any

from qn_deploy.errors import InputError
from qn_deploy.program.members import DAMAGED, Members, read_json

FORMAT = "qn-deploy"
VERSION = 3
MANIFEST = "manifest.json"
MEMBERS = ("graph.json", "weights.safetensors", "tables.safetensors", "golden.safetensors")
EPOCH = (1980, 1, 1, 0, 0, 0)
SAVE = 'call qn_deploy.save(qn_deploy.capture(model, example_inputs), "model.pt")'
FROM_SOURCE = f"take the model that it was made from and {SAVE}"


def pack(manifest: dict[str, Any], members: dict[str, bytes]) -> bytes:
    """The file's bytes: the same manifest and members always give the same ones."""
    hashes = {name: {"sha256": sha256(data).hexdigest(), "size": len(data)} for name, data in members.items()}
    head = {"format": FORMAT, "version": VERSION, "members": hashes, **manifest}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {MANIFEST: json.dumps(head).encode(), **members}.items():
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system, info.external_attr = 3, 0o644 << 16  # the same on every operating system
            archive.writestr(info, data)
    return buffer.getvalue()


def unpack(members: Members) -> tuple[dict[str, Any], Members]:
    """The manifest and the other members, each checked against its hash.

    Raises:
        InputError: they are of something else, of another version, damaged, or one doesn't belong there.
    """
    manifest = _read_manifest(members[MANIFEST])
    members = {name: content for name, content in members.items() if name != MANIFEST}
    if tuple(members) != MEMBERS:
        raise InputError(f"holds the members {list(members)[:10]}; a program holds {list(MEMBERS)}, in this order")
    for name, content in members.items():
        if manifest["members"].get(name) != {"sha256": sha256(content).hexdigest(), "size": len(content)}:
            raise InputError(f"the hash of {name} doesn't match the manifest: the file {DAMAGED}")
    if len(manifest["members"]) != len(members):
        raise InputError(f"the manifest lists members that aren't there: the file {DAMAGED}")
    return manifest, members


def _read_manifest(data: memoryview) -> dict[str, Any]:
    manifest = read_json(data, MANIFEST)
    kind, version = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else (None, None)
    if kind != FORMAT or type(version) is not int or version < 1:
        raise InputError(f"is a zip with the manifest of something else; for a model in memory, {SAVE}")
    if version > VERSION:
        raise InputError(f"has format version {version}, this qn-deploy reads version {VERSION}; upgrade with pip install -U qn-deploy")
    if version < VERSION:
        raise InputError(f"has format version {version} of an earlier qn-deploy, this one reads version {VERSION}; {FROM_SOURCE}")
    if not isinstance(manifest.get("members"), dict):
        raise InputError("has a manifest without hashes; save the model again")
    return dict(manifest)
