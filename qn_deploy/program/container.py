"""The zip around a program: fixed member names, order and dates, nothing deflated, a hash for every member.

    manifest.json             format, version, sha256 and size of each other member; the rest is archive.py's
    graph.json                the exported graph
    weights.safetensors       tensors that have no compressed form
    tables.safetensors        compressed forms
    golden.safetensors        example inputs and float outputs
    calibration.safetensors   absent when no calibration batches were kept

Zip readers disagree about damaged or doubled entries; this one takes exactly the layout that `pack` writes.
"""

from __future__ import annotations

import io
import json
import zipfile
from hashlib import sha256
from typing import Any

from qn_deploy.errors import InputError

FORMAT = "qn-deploy"
VERSION = 2
MANIFEST = "manifest.json"
REQUIRED = ("graph.json", "weights.safetensors", "tables.safetensors", "golden.safetensors")
OPTIONAL = ("calibration.safetensors",)
EPOCH = (1980, 1, 1, 0, 0, 0)
SAVE = 'call qn_deploy.save(model, "model.pt", example_inputs=...)'
LOAD_AND_SAVE = f"load it into your model and {SAVE}"
FROM_SOURCE = f"take the model that it was made from and {SAVE}"
DAMAGED = "is damaged or cut short; copy it again or save the model again"


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


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest and the other members, each checked against its hash.

    Raises:
        InputError: the bytes are something else, newer, damaged, or hold a member that doesn't belong there.
    """
    if not data:
        raise InputError("is empty; save the model again")
    if not data.startswith(b"PK\3\4"):
        raise InputError(_foreign(data))
    members = _read_zip(data)
    manifest = _read_manifest(members.pop(MANIFEST))
    names = tuple(members)
    if names not in (REQUIRED, REQUIRED + OPTIONAL):
        raise InputError(f"holds the members {list(names)}; a program holds {list(REQUIRED)} and may hold {list(OPTIONAL)}, in this order")
    for name, content in members.items():
        stated = manifest["members"].get(name)
        if stated != {"sha256": sha256(content).hexdigest(), "size": len(content)}:
            raise InputError(f"the hash of {name} doesn't match the manifest: the file {DAMAGED}")
    if len(manifest["members"]) != len(members):
        raise InputError(f"the manifest lists members that aren't there: the file {DAMAGED}")
    return manifest, members


def _read_zip(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            # a file of ours has nothing deflated, so its members are never larger than itself: no decompression bombs
            ours = MANIFEST in names and sum(entry.file_size for entry in entries) <= len(data)
            members = {entry.filename: archive.read(entry) for entry in entries} if ours else {}  # read() checks the CRC
    except Exception:  # zipfile raises seven classes for damaged input
        raise InputError(DAMAGED) from None
    if MANIFEST not in names:
        raise InputError(_foreign_zip(names))
    if len(members) != len(names):
        raise InputError(f"holds a member twice, or one larger than the file: it {DAMAGED}")
    return members


def _read_manifest(data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
        kind, version = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        kind, version = None, None
    if kind != FORMAT or type(version) is not int or version < 1:
        raise InputError(f"is a zip with the manifest of something else; for a model in memory, {SAVE}")
    if version > VERSION:
        raise InputError(f"has format version {version}, this qn-deploy reads up to {VERSION}; upgrade with pip install -U qn-deploy")
    if not isinstance(manifest.get("members"), dict):
        raise InputError("has a manifest without hashes; save the model again")
    return dict(manifest)


def _foreign(data: bytes) -> str:
    if data.startswith(b"\x80"):
        return f"is a pickle or an old torch.save file, which is never opened; {LOAD_AND_SAVE}"
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        return f"is a safetensors file, weights without a graph; {LOAD_AND_SAVE}"
    if data[4:6] == b"ET":
        return "is an ExecuTorch program, a result of the export; give the model.pt that it was exported from"
    return f"is no program of qn-deploy; for a model in memory, {SAVE}"


def _foreign_zip(names: list[str]) -> str:
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return f"is a TorchScript program, which is never opened; {FROM_SOURCE}"
    if any("/models/" in name or name.endswith("archive_format") for name in names):
        return f"is a torch.export archive (.pt2), which is never opened; {FROM_SOURCE}"
    if any(name.endswith("data.pkl") for name in names):
        return f"is a torch.save checkpoint, weights without a graph; {LOAD_AND_SAVE}"
    return f"is a zip of something else ({', '.join(names[:3]) or 'no members'}); for a model in memory, {SAVE}"
