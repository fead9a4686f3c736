"""An error of the lowering becomes one plain sentence that still has the operator's name."""

from __future__ import annotations

import pytest

from qn_deploy.exporters.to_executorch.refusal import refusal

END = "; keep it out of the model, or export with --only onnx"


@pytest.mark.parametrize(
    "message, expected",
    [
        ("Missing out variants: {'aten::sort'}", "Missing out variants: {'aten::sort'}"),
        ("\x1b[31m\n\x1b[0mbad stride\nat torch.ops.aten.unfold.default\n", "bad stride (at unfold)"),
        ("no shape.\n\nWhile executing %pad_1 : call_function[target=torch.ops.aten.pad.default]", "no shape (at pad, node pad_1)"),
        ("", "ValueError"),
    ],
)
def test_the_operator_is_named_without_colours(message: str, expected: str) -> None:
    assert refusal(ValueError(message)) == f"ExecuTorch can't lower this graph: {expected}{END}"
