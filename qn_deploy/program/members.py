"""The members of a zip that holds nothing deflated, as model.pt and .pt2 are: each is a part of the file's own bytes.

So a member is never larger than its file, and no two share bytes: there is no decompression bomb among them. Zip readers disagree about
damaged or doubled entries; this one refuses them.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from typing import Any

from qn_deploy.errors import InputError

MAX_MEMBERS = 100_000
MAX_JSON = 64 << 20  # bytes; what Python makes of it takes ten times as much
DAMAGED = "is damaged or cut short; copy it again or save the model again"
_DIRECTORY_ENTRY = b"PK\1\2"
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, length of the name, length of the extra field
_FOLDER = 0x10  # of the attributes; torch gives such a member memory, and leaves what is in it
_FLAGS = zipfile._MASK_UTF_FILENAME | zipfile._MASK_USE_DATA_DESCRIPTOR  # type: ignore[attr-defined]  # neither encrypted nor patched

Members = dict[str, memoryview]


def read_directory(data: bytes) -> list[zipfile.ZipInfo]:
    """The entries of a zip's directory; nothing is said of the members yet.

    Raises:
        InputError: the bytes are no zip, or it has more members than a model.
    """
    if data.count(_DIRECTORY_ENTRY) > MAX_MEMBERS:
        raise InputError(f"holds more than {MAX_MEMBERS:,} members; a model holds one or two for each weight")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.infolist()
    except Exception:  # zipfile raises seven classes for damaged input
        raise InputError(DAMAGED) from None


def read_members(data: bytes) -> Members:
    """The members of a zip by name, in the order of its directory; their CRCs hold.

    Raises:
        InputError: the bytes are no whole zip of stored members with names of their own.
    """
    entries = read_directory(data)
    members = {entry.filename: _member(data, entry) for entry in entries}
    if len(members) != len(entries):
        raise InputError(f"holds a member twice: it {DAMAGED}")
    ends = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < ends:
            raise InputError(f"has members that share bytes: it {DAMAGED}")
        ends = entry.header_offset + _LOCAL_HEADER.size + entry.file_size
    return members


def read_json(content: memoryview, name: str) -> Any:
    """The JSON of a member.

    Raises:
        InputError: it is no JSON of numbers, text, lists and dicts, or too large.
    """
    if len(content) > MAX_JSON:
        raise InputError(f"{name} holds {len(content):,} bytes of JSON; expected at most {MAX_JSON:,}")
    try:
        return json.loads(bytes(content), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise InputError(f"{name} is no JSON: the file {DAMAGED}") from None


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _member(data: bytes, entry: zipfile.ZipInfo) -> memoryview:
    name = entry.filename
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ~_FLAGS:
        raise InputError(f"holds {name[:100]!r} compressed or encrypted; a model holds neither. Save the model again")
    if entry.external_attr & _FOLDER:
        raise InputError(f"holds {name[:100]!r} marked as a folder: the file {DAMAGED}")
    start = entry.header_offset
    if start < 0 or start + _LOCAL_HEADER.size > len(data):
        raise InputError(DAMAGED)
    signature, name_length, extra_length = _LOCAL_HEADER.unpack_from(data, start)
    first = start + _LOCAL_HEADER.size
    stated = data[first : first + name_length]
    content = memoryview(data)[first + name_length + extra_length :][: entry.file_size]
    if (
        signature != b"PK\3\4"
        or stated != name.encode("utf-8" if entry.flag_bits & 0x800 else "cp437", "replace")
        or not entry.file_size == entry.compress_size == len(content)
        or zlib.crc32(content) != entry.CRC
    ):
        raise InputError(f"the member {name[:100]!r} doesn't match the directory of the zip: the file {DAMAGED}")
    return content
