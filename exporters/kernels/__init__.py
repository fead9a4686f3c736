"""C++ kernels that multiply with tables as they are: the layout, and how they are built."""

from __future__ import annotations

from typing import Literal

Memory = Literal[
    "expanded", "compressed", "auto"
]  # which tables stay tables in memory: none, all that the kernels take, or where it is fast
MEMORY_OPTION = {
    "flag": "--memory",
    "help": "tables in memory where our library runs them: int8, as they are, or as they are where it is fast.",
}
