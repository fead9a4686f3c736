from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest

from qn_deploy.exporters.to_onnx.read import session_options

Optimized = Callable[[bytes], "Counter[str]"]


@pytest.fixture
def optimized(tmp_path: Path) -> Optimized:
    """How often each operator stands in the graph that onnxruntime really runs."""

    def operators(data: bytes) -> Counter[str]:
        options = session_options()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)

    return operators
