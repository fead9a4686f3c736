"""What loading a program costs in memory: measured in a process of its own, since memory that was once used seldom goes back.

python memory.py FILE.onnx INPUTS.npz       or a folder with a shell and its sidecar
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

MB = 2**20


@dataclass(frozen=True)
class Memory:
    """MB over what the process had before it loaded the program: at the peak of loading, and after its first run."""

    peak: float
    resident: float


def measure(program: Path, inputs: Path) -> Memory:
    """Loads a program and runs it once, one thread, in a new process.

    Args:
        program: an .onnx file, or a folder with model.shell.onnx and its sidecar.
        inputs: an .npz with an array for each input of the model, in the order of the model's inputs.
    """
    code = f"from pathlib import Path; import memory; memory.load(Path({str(program)!r}), Path({str(inputs)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / MB for line in lines if line.startswith(field))


def _trimmed() -> float:
    import ctypes

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return _status("VmRSS")


def _warm_up(onnxruntime: ModuleType) -> None:
    """Runs a program of one operator: the runtime's own pages and tables are not the program's memory."""
    from onnx import TensorProto, helper

    value, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "warm", [value], [result])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, {"x": [1.0]})


def load(program: Path, inputs: Path) -> None:
    """What the new process does; prints a Memory as JSON."""
    import numpy as np
    import onnxruntime

    from qn_deploy.exporters.to_onnx.shell import load_shell

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    feeds = dict(np.load(inputs))
    _warm_up(onnxruntime)
    before = _trimmed()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    if program.is_dir():
        session = load_shell(program, options)
    else:
        session = onnxruntime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
    session.run(None, {entry.name: array for entry, array in zip(session.get_inputs(), feeds.values(), strict=True)})
    peak = _status("VmHWM")
    print(json.dumps({"peak": peak - before, "resident": _trimmed() - before}))
