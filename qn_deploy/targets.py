"""Where a program is to run. A target names the exporters that serve it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One kind of machine.

    Attributes:
        title: one line for `--help`.
        exporters: names of the exporters whose files it takes.
    """

    title: str
    exporters: tuple[str, ...]


TARGETS = {
    "arm": Target("64-bit ARM phones and boards: onnxruntime, and ExecuTorch with XNNPACK", ("onnx", "executorch")),
    "x86": Target("x86-64 laptops and servers: onnxruntime, and ExecuTorch with XNNPACK", ("onnx", "executorch")),
}
