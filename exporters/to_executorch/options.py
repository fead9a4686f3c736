"""What an export for ExecuTorch may choose."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ..kernels import MEMORY_OPTION, Memory


@dataclass(frozen=True)
class ExecutorchOptions:
    """Options of `qn-deploy export`.

    Attributes:
        form: "delegate" (tables expand when the program is loaded) or "graph" (weights are looked up at every run).
        memory: which tables of linear layers stay tables in memory, in the delegate form.
        coding: "entropy" (tables are entropy-coded where that takes fewer bytes, and decoded when the program is loaded) or "none".
    """

    form: Literal["delegate", "graph"] = field(
        default="delegate",
        metadata={
            "help": "tables that our delegate expands when it loads, beside a container for apps without native code of ours; or lookups "
            "in the graph, which take the least memory, need float activations, and are slow."
        },
    )
    memory: Memory = field(default="expanded", metadata=MEMORY_OPTION)
    coding: Literal["entropy", "none"] = field(
        default="entropy",
        metadata={
            "help": "entropy-code tables where that takes fewer bytes: our readers decode them when they load; those made before this "
            "release need 'none'."
        },
    )
