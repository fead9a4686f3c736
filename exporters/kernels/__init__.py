"""C++ kernels that multiply with tables as they are: the layout, and how they are built."""

from __future__ import annotations

from typing import Literal

# Which tables stay tables in memory: none, all that the kernels take, or those with which it is fast.
Memory = Literal["expanded", "compressed", "auto"]
MEMORY_OPTION = {
    "flag": "--memory",
    "help": "tables in memory where our library runs them: int8, as they are, or as they are where it is fast.",
}
