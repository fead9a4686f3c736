"""Sizes and times as people write them."""

from __future__ import annotations

import re

from qn_deploy.errors import InputError

_SIZES = {"": 1, "B": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
_MINUTES = {"s": 1 / 60, "sec": 1 / 60, "m": 1.0, "min": 1.0, "h": 60.0}
_FORM = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([A-Za-z]*)", re.ASCII)


def read_size(text: str) -> int:
    """Bytes: 1.5MB, 300KB, 12345 (1 KB = 1024 B; KiB is the same).

    Raises:
        InputError: another form, or less than one byte.
    """
    match = _FORM.fullmatch(text.strip())
    unit = match[2].upper().replace("IB", "B") if match else ""
    if match is None or unit not in _SIZES or (count := int(float(match[1]) * _SIZES[unit])) < 1:
        raise InputError(f"{text!r} is not a size; write 1.5MB, 300KB or a number of bytes")
    return count


def read_minutes(text: str) -> float:
    """Minutes: 10min, 90s, 1h.

    Raises:
        InputError: another form, or no time at all.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None or match[2].lower() not in _MINUTES or (minutes := float(match[1]) * _MINUTES[match[2].lower()]) <= 0:
        raise InputError(f"{text!r} is not a time; write 10min, 90s or 1h")
    return minutes
