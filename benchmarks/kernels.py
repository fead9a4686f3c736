"""A product with a table beside onnxruntime's own: dense int8, and MatMulNBits of 2 and 4 bits.

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
from functools import partial
from itertools import product
from pathlib import Path

import click
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from rows import Row, at_least, at_most, chosen, finish, json_option, seed_option

from qn_deploy.exporters.to_onnx.compressed import keep_tables
from qn_deploy.exporters.to_onnx.library import build_library
from qn_deploy.weights.compressed import PQWeight

TITLE = "Tables that stay tables in memory, onnxruntime"
LAYERS = ((4096, 4096), (1024, 4096))
INT8 = "int8"
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
Call = Callable[[], object]


def table(out: int, columns: int, d: int, top: int = 127, seed: int = 0) -> PQWeight:
    """A table of random codes and 16 random centroids within +-top, of `columns` weights a row."""
    rng = np.random.default_rng(seed)
    codes = torch.from_numpy(rng.integers(0, 16, (out, columns // d)).astype(np.uint8))
    centroids = torch.from_numpy(rng.normal(0, top / 3, (1, 16, d)).clip(-top, top).astype(np.int8))
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


def ratio(slow: Call, fast: Call, samples: int) -> float:
    """How many times faster `fast` is: the ratio of the medians, in seconds of the thread."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(samples + 2):
        for call, kept in zip((slow, fast), times, strict=True):
            begin = time.thread_time()
            call()
            kept.append(time.thread_time() - begin)
    first, second = (statistics.median(kept[2:]) for kept in times)
    return first / second


def speed(seed: int) -> list[Row]:
    """One layer on 1 and on 128 rows of activations."""
    found = []
    for (out, columns), (d, top, faster) in product(LAYERS, ((2, 127, 1.4), (4, 63, 2.5))):
        weight = table(out, columns, d, top, seed)
        ours = session(chain([weight], kept=True), library=True)
        dense = chain([weight], kept=False)
        others = {INT8: session(dense), "saturating int8": session(dense, exact=False)}
        if d == 2:
            others |= {
                "2 bits": session(nbits(weight, 2)),
                "2 bits, LUT": session(nbits(weight, 2), lut=True),
                "4 bits": session(nbits(weight, 4)),
            }
        for (name, other), rows in product(others.items(), (1, 128)):
            x = {"x": np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)}
            value = ratio(partial(other.run, None, x), partial(ours.run, None, x), 41 if rows == 1 else 5)
            title, bar = f"{out}x{columns}, d={d}, {rows} rows: {name} / table", faster if out == columns else 1.0
            if rows > 1 and name != INT8:
                found.append(Row(title, value, "x"))
            else:
                found.append(at_least(title, value, "x", (bar if "int8" in name else 1.0) if rows == 1 else 1 / 1.25))
    return found


_CHILD = """
import ctypes, gc, json, sys, time
import numpy as np
from kernels import session
def kb(field): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
def trimmed(): gc.collect(); ctypes.CDLL("libc.so.6").malloc_trim(0); return kb("VmRSS")
path, library, small = sys.argv[1], sys.argv[2] == "1", sys.argv[3]
warm = session(small, library)
warm.run(None, {"x": np.zeros((1, 64), np.float32)})
before = trimmed()
begin = time.thread_time(); data = open(path, "rb").read(); read = time.thread_time() - begin; del data
trimmed(); open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
begin = time.thread_time(); ours = session(path, library); load = time.thread_time() - begin
ours.run(None, {"x": np.ones((1, 2048), np.float32)})
peak = kb("VmHWM") - before
print(json.dumps([1024 * (trimmed() - before), 1024 * peak, load, read]))
"""


def memory(seed: int) -> list[Row]:
    """Twelve layers of 2048 x 2048: what a process has more after loading and running once."""
    found = []
    size = 12 * 2048 * 2048
    with tempfile.TemporaryDirectory() as name:
        small, path = Path(name) / "small.onnx", Path(name) / "model.onnx"
        small.write_bytes(chain([table(64, 64, 2)], kept=False))
        for d, share in ((2, 0.35), (4, 0.22)):
            weights = [table(2048, 2048, d, seed=seed + index) for index in range(12)]  # equal ones would become one
            for kind, kept, library in ((INT8, False, False), ("table, no library", True, False), ("table", True, True)):
                path.write_bytes(chain(weights, kept))
                command = [sys.executable, "-c", _CHILD, str(path), str(int(library)), str(small)]
                done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
                resident, peak, load, read = json.loads(done.stdout)
                title = f"12 x 2048x2048, d={d}, {kind}"
                if library:
                    found += [
                        at_most(f"{title}: resident / int8 weights", resident / size, "x", share),
                        at_most(f"{title}: peak of loading / int8 weights", peak / size, "x", 1.2 * share),
                        at_most(f"{title}: time of loading / of reading", load / read, "x", 1.1),
                    ]
                else:
                    found += [
                        Row(f"{title}: resident", resident, "bytes"),
                        Row(f"{title}: peak", peak, "bytes"),
                        Row(f"{title}: load", 1e3 * load, "ms"),
                    ]
    return found


@click.command(help=__doc__)
@seed_option
@json_option
def main(seed: int, json_file: Path | None) -> None:
    build_library()
    sys.exit(finish(TITLE, [*memory(seed), *speed(seed)], chosen(), json_file))


if __name__ == "__main__":
    main()
