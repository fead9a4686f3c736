"""The memory of this process."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Gives freed memory back to the system: glibc keeps blocks of up to 32 MB, and a walk frees many between those it holds."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
