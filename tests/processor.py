"""What the processor of this machine computes otherwise than others."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path


@cache
def adds_in_16_bits() -> bool:
    """True on an x86 processor without VNNI: its kernels add pairs of u8 * s8 products in int16, which saturates."""
    cpuinfo = Path("/proc/cpuinfo")
    return platform.machine() in ("x86_64", "AMD64") and cpuinfo.exists() and "vnni" not in cpuinfo.read_text()
