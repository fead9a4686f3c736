"""What stopped ExecuTorch's lowering, in one sentence that names the operator and the way out."""

from __future__ import annotations

import re

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OPERATOR = re.compile(r"\baten(?:::|\.)(\w+)")
_NODE = re.compile(r"While executing %(\w+)")  # as torch.fx ends what an operator raises


def refusal(error: Exception) -> str:
    """The message for an error that exir raised, whose own is many lines, some in colours, with the operator in any of them.

    >>> refusal(RuntimeError("Missing out variants: {'aten::sort'}"))
    "ExecuTorch can't lower this graph: Missing out variants: {'aten::sort'}; keep it out of the model, or export with --only onnx"
    """
    text = _COLOURS.sub("", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = lines[0].rstrip(".") if lines else type(error).__name__
    named = [name for name in dict.fromkeys(_OPERATOR.findall(text)) if name not in reason]
    nodes = [f"node {name}" for name in _NODE.findall(text)]
    where = [] if _OPERATOR.search(reason) else [*named[:1], *nodes[-1:]]
    at = f" (at {', '.join(where)})" if where else ""
    return f"ExecuTorch can't lower this graph: {reason}{at}; keep it out of the model, or export with --only onnx"
