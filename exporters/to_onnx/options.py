"""What an export for onnxruntime may choose."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..kernels import MEMORY_OPTION, Memory


@dataclass(frozen=True)
class OnnxOptions:
    """Options of `qn-deploy export`.

    Attributes:
        shell: also write the graph and its constants as two files, which take less memory to load.
        allow_unfused: a layer that the runtime does not fuse is a remark, not an error.
        memory: which tables stay tables in memory once our library of operators is registered; without it all are expanded at load.
    """

    shell: bool = field(
        default=False,
        metadata={"flag": "--shell", "help": "also write a shell and a sidecar with the tables, which take less memory to load."},
    )
    allow_unfused: bool = field(
        default=False,
        metadata={"flag": "--allow-unfused", "help": "write the file even if onnxruntime would run a layer in float."},
    )
    memory: Memory = field(default="expanded", metadata=MEMORY_OPTION)
