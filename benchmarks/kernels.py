"""A product with a table beside onnxruntime's own: dense int8, and MatMulNBits of 2 and 4 bits.

python kernels.py [OUT.json]

Each model is one dynamic layer, float32 in and out. The compressed file is the same in both worlds: with libqn_onnx_ops.so it runs on the
table, without it on the expanded weight. Times are of the thread, not of the clock: another process that takes the core does not count.
Pairs run in turn, A B A B; the ratio is that of the medians.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from qn_deploy.exporters.to_onnx.compressed import bytes_in_memory, keep_tables
from qn_deploy.exporters.to_onnx.library import build_library
from qn_deploy.weights.compressed import PQWeight

OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
Call = Callable[[], object]


def table(out: int, columns: int, d: int, size: int = 16, books: int = 1, top: int = 127, seed: int = 0) -> PQWeight:
    """A table of random codes and centroids, of `columns` weights a row."""
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(0, size, (out, columns // d)).astype(np.uint8))
    centroids = torch.from_numpy(rng.normal(0, top / 3, (books, size, d)).clip(-top, top).astype(np.int8))
    return PQWeight(codes, centroids, torch.full((out,), 0.01), (out, columns))


def chain(weights: list[PQWeight], kept: bool) -> bytes:
    """Layers one after the other, dense int8 or tables."""
    nodes, constants = [], {}
    value = "x"
    for index, weight in enumerate(weights):
        name, y = f"{index}.weight", f"y{index}"
        constants[f"{name}/scale"] = weight.scale.numpy() / weight.shape[1] ** 0.5
        if kept:
            constants |= {
                f"{name}/codes": weight.codes.numpy(),
                f"{name}/centroids": weight.centroids.reshape(-1, weight.block_size).numpy(),
            }
            constants[f"shape/{index}"] = np.array(weight.shape, np.int64)
            nodes += [
                helper.make_node("Cast", [f"{name}/codes"], [f"r{index}"], to=TensorProto.INT32),
                helper.make_node("Gather", [f"{name}/centroids", f"r{index}"], [f"g{index}"]),
                helper.make_node("Reshape", [f"g{index}", f"shape/{index}"], [f"{name}/int8"]),
                helper.make_node("Transpose", [f"{name}/int8"], [f"t{index}"], perm=[1, 0]),
            ]
        else:
            constants[f"t{index}"] = np.ascontiguousarray(weight.int8().numpy().T)
        nodes += [
            helper.make_node("DynamicQuantizeLinear", [value], [f"q{index}", f"s{index}", f"z{index}"]),
            helper.make_node("MatMulInteger", [f"q{index}", f"t{index}", f"z{index}"], [f"a{index}"]),
            helper.make_node("Cast", [f"a{index}"], [f"f{index}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"s{index}", f"{name}/scale"], [f"m{index}"]),
            helper.make_node("Mul", [f"f{index}", f"m{index}"], [y]),
        ]
        value = y
    model = _model(nodes, constants, value, weights)
    if kept:
        tables = {f"{index}.weight": weight for index, weight in enumerate(weights)}
        assert len(keep_tables(model, tables)) == len(tables)
    return model.SerializeToString()


def nbits(weight: PQWeight, bits: int) -> bytes:
    """The layer as onnxruntime's MatMulNBits, blocks of 32 weights; random codes."""
    out, columns = weight.shape
    rng = np.random.default_rng(0)
    constants = {
        "b": rng.integers(0, 256, (out, columns // 32, 32 * bits // 8), dtype=np.uint8),
        "s": np.full((out, columns // 32), 0.01, np.float32),
    }
    options = {"K": columns, "N": out, "bits": bits, "block_size": 32, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y0"], domain="com.microsoft", **options)
    return _model([node], constants, "y0", [weight]).SerializeToString()


def _model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], output: str, weights: list[PQWeight]) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", weights[0].shape[1]])]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", weights[-1].shape[0]])]
    initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()]
    return helper.make_model(helper.make_graph(nodes, "layers", inputs, outputs, initializers), opset_imports=OPSETS, ir_version=10)


def session(data: bytes | str, library: bool = False, exact: bool = True, lut: bool = False) -> onnxruntime.InferenceSession:
    """One thread; `exact` is x64quantprecision, without which sums saturate on x86 without VNNI."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.x64quantprecision", str(int(exact)))
    options.add_session_config_entry("mlas.use_lut_gemm", str(int(lut)))
    if library:
        options.register_custom_ops_library(str(build_library()))
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def ratio(slow: Call, fast: Call, samples: int) -> tuple[float, float, float]:
    """(ratio of the medians, seconds of each)."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(samples + 2):
        for call, kept in zip((slow, fast), times, strict=True):
            begin = time.thread_time()
            call()
            kept.append(time.thread_time() - begin)
    first, second = (statistics.median(kept[2:]) for kept in times)
    return first / second, first, second


def speed(rows: list[dict[str, object]]) -> None:
    """One layer, rows of activations 1, 16 and 128."""
    for out, columns in ((4096, 4096), (1024, 4096), (4096, 1024), (384, 384)):
        for d, size, books in ((2, 16, 1), (4, 16, 1), (2, 16, 16), (8, 256, 1)):
            weight = table(out, columns, d, size, books, 63 if d == 4 else 127) if books == 1 else table(out, columns, d, size, 1)
            ours = session(chain([weight], kept=True), library=True)
            others = {"int8, exact": session(chain([weight], False)), "int8, saturating": session(chain([weight], False), exact=False)}
            if d == 2 and books == 1:
                others |= {
                    "2 bits": session(nbits(weight, 2)),
                    "2 bits, LUT": session(nbits(weight, 2), lut=True),
                    "4 bits": session(nbits(weight, 4)),
                }
            for count in (1, 16, 128):
                x = {"x": np.random.default_rng(0).normal(size=(count, columns)).astype(np.float32)}
                for name, other in others.items():
                    found, theirs, mine = ratio(lambda: other.run(None, x), lambda: ours.run(None, x), 25 if count == 1 else 5)  # noqa: B023
                    rows.append(
                        {
                            "layer": f"{out}x{columns}", "table": f"K={size} d={d}", "rows": count, "beside": name,
                            "faster": round(found, 2), "theirs_ms": round(1e3 * theirs, 3), "ours_ms": round(1e3 * mine, 3),
                        }
                    )  # fmt: skip
                    print(rows[-1], flush=True)


_CHILD = """
import sys, time, json, resource, numpy as np
from kernels import session
import gc, ctypes
def kb(field): return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(field))
path, library = sys.argv[1], sys.argv[2] == '1'
if library: from qn_deploy.exporters.to_onnx.library import build_library; build_library()
warm = session(sys.argv[3], library); warm.run(None, {'x': np.zeros((1, 64), np.float32)})
gc.collect(); ctypes.CDLL('libc.so.6').malloc_trim(0)
before = kb('VmRSS')
begin = time.thread_time(); data = open(path, 'rb').read(); read = time.thread_time() - begin; del data
open('/proc/self/clear_refs', 'w').write('5')
begin = time.thread_time(); ours = session(path, library); load = time.thread_time() - begin
ours.run(None, {'x': np.ones((1, 2048), np.float32)})
peak = kb('VmHWM') - before
gc.collect(); ctypes.CDLL('libc.so.6').malloc_trim(0)
print(json.dumps({'resident': kb('VmRSS') - before, 'peak': peak, 'load_ms': 1e3 * load, 'read_ms': 1e3 * read}))
"""


def memory(rows: list[dict[str, object]]) -> None:
    """Twelve layers of 2048 x 2048: what a process has more after loading and running once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "small.onnx").write_bytes(chain([table(64, 64, 2)], kept=False))
        for d in (2, 4):
            weights = [table(2048, 2048, d, seed=index) for index in range(12)]  # equal ones would become one
            for kind, kept, library in (("int8", False, False), ("function, no library", True, False), ("tables", True, True)):
                path = folder / "model.onnx"
                path.write_bytes(chain(weights, kept))
                command = [sys.executable, "-c", _CHILD, str(path), str(int(library)), str(folder / "small.onnx")]
                done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
                rows.append({"layers": "12 of 2048x2048", "d": d, "form": kind, "file": path.stat().st_size, **json.loads(done.stdout)})
                print(rows[-1], flush=True)
            print(f"d={d}: the kernels keep {12 * bytes_in_memory(weights[0]):,} bytes, int8 takes {12 * 2048 * 2048:,}")


def main() -> None:
    """Prints each figure; writes them to a file if one is named."""
    rows: dict[str, list[dict[str, object]]] = {"memory": [], "speed": []}
    memory(rows["memory"])
    speed(rows["speed"])
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
