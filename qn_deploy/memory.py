"""The memory of this process, and how tensors lie in it."""

from __future__ import annotations

import ctypes
from contextlib import suppress

from torch import Tensor


def give_back() -> None:
    """Gives freed memory back to the system: glibc keeps blocks of up to 32 MB, and a walk frees many between those it holds."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def as_laid_out(*values: Tensor) -> list[Tensor]:
    """The values as [n] in the order in which the first lies in memory: no copies of what lies so, be it channels first or last."""
    order = sorted(range(values[0].ndim), key=values[0].stride, reverse=True)
    return [value.permute(order).flatten() for value in values]
