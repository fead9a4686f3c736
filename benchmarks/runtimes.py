"""Table-compressed programs on onnxruntime, beside onnxruntime's own int8 of the same float model: bytes, time, load, memory."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import memory
import numpy as np
import onnx
import paired
import torch
from rows import Row, at_most, chosen, clock, finish, json_option, seed_option
from torch import Tensor, nn
from workloads import DYNAMIC, LINEAR, WORKLOADS, Workload, random_program, stack

from qn_deploy.exporters.to_onnx import EXPORTER
from qn_deploy.exporters.to_onnx.options import OnnxOptions
from qn_deploy.exporters.to_onnx.own import own_int8
from qn_deploy.exporting.describe import theoretical_bytes
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations

TITLE = "Tables on onnxruntime"
FILE_FACTOR, FILE_EXTRA = 1.02, 16 * 1024  # bytes of a file against those of its constants


# Times onnxruntime's own int8, and times float32, at most.
TO_INT8 = {
    "Linear 1024x4096, static, batch 1": 1.15,
    "Linear 1024x4096, static, batch 128": 1.05,
    "Linear 1024x4096, dynamic, batch 1": 1.15,
    "Linear 1024x4096, dynamic, batch 128": 1.05,
    "Conv 3x3 256": 1.02,
    "ResNet-50": 1.05,
    "MobileNet": 1.05,
    "6-layer encoder, dynamic": 1.05,
    "6-layer encoder, static": 1.05,
}
TO_FLOAT = {"Linear 1024x4096, static, batch 1": 0.40, "Linear 1024x4096, dynamic, batch 1": 0.40, "Conv 3x3 256": 0.40}
LOAD, PEAK = 2.2, 1.15  # times onnxruntime's own int8
EMBEDDING = (50_000, 768)
EMBEDDING_RAM, EMBEDDING_TIME = 1.1, 1.3


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="TEXT", help="Workloads whose name holds this; may be repeated.")
@click.option("--samples", default=60, show_default=True, help="Of each of two programs.")
@seed_option
@json_option
def main(only: tuple[str, ...], samples: int, seed: int, json_file: Path | None) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    progress, rows = clock(), []
    parts = {name: lambda name=name: _workload(name, WORKLOADS[name], samples) for name in WORKLOADS}
    parts |= {"load of 12 layers of 2048x2048": lambda: _load(samples), "Embedding 50000x768": lambda: _embedding(samples)}
    for name, part in parts.items():
        if not only or any(text in name for text in only):
            progress(name)
            rows += part()
    sys.exit(finish(TITLE, rows, chosen(), json_file))


def _workload(name: str, workload: Workload, samples: int) -> list[Row]:
    model, x = workload.make().eval(), workload.inputs()
    program = random_program(model, x, workload.recipe, workload.activations)
    data = write_file(EXPORTER, program, workload.activations).data
    plain = paired.float_onnx(model, x)
    own = _int8_of_onnxruntime(plain, x, workload.activations)
    tables = paired.onnxruntime_call(data, x)
    pair = paired.paired(tables, paired.onnxruntime_call(own, x), samples)
    theory = theoretical_bytes(program)
    rows = [
        at_most(f"{name}: file", len(data), "bytes", FILE_FACTOR * theory + FILE_EXTRA),
        Row(f"{name}: file of int8", len(own), "bytes"),
        at_most(f"{name}: time to int8", pair.ratio, "x", TO_INT8[name]),
        Row(f"{name}: time", 1e3 * pair.first, "ms"),
    ]
    pair = paired.paired(tables, paired.onnxruntime_call(plain, x), samples)
    bar = f"{name}: time to float32"
    return [*rows, at_most(bar, pair.ratio, "x", TO_FLOAT[name]) if name in TO_FLOAT else Row(bar, pair.ratio, "x")]


def _load(samples: int) -> list[Row]:
    x = torch.randn(1, 2048)
    model = stack().eval()
    program = random_program(model, x, LINEAR, DYNAMIC)
    written = write_file(EXPORTER, program, DYNAMIC, OnnxOptions(shell=True))
    own = _int8_of_onnxruntime(paired.float_onnx(model, x), x, DYNAMIC)
    pair = paired.paired(
        lambda: paired.onnxruntime_call(written.data, x)(), lambda: paired.onnxruntime_call(own, x)(), max(4, samples // 6)
    )
    rows = [at_most("12 layers of 2048x2048: load and first run to int8", pair.ratio, "x", LOAD), Row("load", 1e3 * pair.first, "ms")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in {"tables.onnx": written.data, "int8.onnx": own, **written.companions}.items():
            (folder / file).write_bytes(data)
        np.savez(folder / "inputs.npz", x.numpy())
        tables, int8, shell = (
            memory.measure(path, folder / "inputs.npz") for path in (folder / "tables.onnx", folder / "int8.onnx", folder)
        )
    return [
        *rows,
        Row("peak of loading, one file, to int8", tables.peak / int8.peak, "x"),
        at_most("peak of loading, shell, to int8", shell.peak / int8.peak, "x", PEAK),
        *(Row(f"peak of loading, {what}", found.peak, "MB") for what, found in (("one file", tables), ("shell", shell), ("int8", int8))),
        *(Row(f"after a run, {what}", found.resident, "MB") for what, found in (("one file", tables), ("shell", shell), ("int8", int8))),
    ]


def _embedding(samples: int) -> list[Row]:
    ids = torch.tensor([[7]])
    program = random_program(nn.Sequential(nn.Embedding(*EMBEDDING)).eval(), ids, LINEAR, DYNAMIC)
    data = write_file(EXPORTER, program, DYNAMIC).data
    own = _int8_embedding()
    pair = paired.paired(paired.onnxruntime_call(data, ids), paired.onnxruntime_call(own, ids), samples)
    with tempfile.TemporaryDirectory() as name:
        (folder := Path(name)).joinpath("model.onnx").write_bytes(data)
        np.savez(folder / "inputs.npz", ids.numpy())
        found = memory.measure(folder / "model.onnx", folder / "inputs.npz")
    size = len(data) / memory.MB
    return [
        at_most("Embedding 50000x768: file", len(data), "bytes", FILE_FACTOR * theoretical_bytes(program) + FILE_EXTRA),
        at_most("Embedding 50000x768: memory to its file", found.resident / size, "x", EMBEDDING_RAM),
        at_most("Embedding 50000x768: one token to int8", pair.ratio, "x", EMBEDDING_TIME),
        Row("Embedding 50000x768: one token", 1e6 * pair.first, "us"),
    ]


def _int8_of_onnxruntime(plain: bytes, x: Tensor, activations: Activations) -> bytes:
    """What onnxruntime's own tools make of a float model: per channel, uint8 activations."""
    name = onnx.load_model_from_string(plain).graph.input[0].name
    return own_int8(plain, {name: x.numpy()}, is_static=activations is not DYNAMIC)


def _int8_embedding() -> bytes:
    """Gather of int8 rows, then DequantizeLinear."""
    from onnx import TensorProto, helper, numpy_helper

    rows = numpy_helper.from_array(np.random.default_rng(0).integers(-127, 128, EMBEDDING).astype(np.int8), "rows")
    scale, zero = numpy_helper.from_array(np.float32(0.01), "scale"), numpy_helper.from_array(np.int8(0), "zero")
    gather = helper.make_node("Gather", ["rows", "ids"], ["found"])
    dequantize = helper.make_node("DequantizeLinear", ["found", "scale", "zero"], ["y"])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [1, 1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, EMBEDDING[1]])
    graph = helper.make_graph([gather, dequantize], "int8", [ids], [y], [rows, scale, zero])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    data: bytes = model.SerializeToString()
    return data


if __name__ == "__main__":
    main()
