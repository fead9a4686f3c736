"""Table-compressed programs on ExecuTorch, beside the stock int8 program of the same weights: bytes, bits, time, load, memory."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from qn_runner import Runner
from rows import Row, at_least, at_most, chosen, clock, finish, json_option, seed_option
from torch import nn
from workloads import CONV, DYNAMIC, LINEAR, STATIC, WORKLOADS, Workload, random_program, stack

from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporters.to_executorch.options import ExecutorchOptions
from qn_deploy.exporting.describe import theoretical_bytes
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.recipe import Recipe, Rule, Table
from qn_deploy.verification.numerics import compare

TITLE = "Tables on ExecuTorch"
FILE_FACTOR, FILE_EXTRA = 1.02, 24 * 1024  # bytes of a file against those of its constants
SMALLER = 7.5  # times than stock int8, Linear d=8
TIME, LOAD, RAM, PEAK = 1.03, 1.5, 1.02, 1.3  # times stock int8
REBUILD = 500  # MB/s
EMBEDDING, EMBEDDING_FILE, EMBEDDING_RAM = (30522, 768), 1.05, 1.1
ONE_CODEBOOK = Recipe((Rule(Table(8, 256, codebooks=1)),), title="d=8, one codebook a layer")


ONNX_ONLY = "6-layer encoder, static"
STACK = {"12 layers of 2048x2048": Workload(stack, lambda: torch.randn(1, 2048), DYNAMIC, ONE_CODEBOOK)}


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="TEXT", help="Workloads whose name holds this; may be repeated.")
@click.option("--loads", default=20, show_default=True, help="Processes that load each of two programs, in turn.")
@click.option("--runs", default=20, show_default=True, help="Of a program in each process.")
@seed_option
@json_option
def main(only: tuple[str, ...], loads: int, runs: int, seed: int, json_file: Path | None) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    progress, rows = clock(), []
    workloads = {**{name: workload for name, workload in WORKLOADS.items() if name != ONNX_ONLY}, **STACK}
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(Path(name), loads, runs)
        parts: dict[str, Callable[[], list[Row]]] = {name: lambda name=name: _workload(name, workloads[name], runner) for name in workloads}
        parts |= {"rebuild": _rebuild, "Embedding 30522x768": lambda: _embedding(runner), "graph form": lambda: _graph_form(runner)}
        for part, measure in parts.items():
            if not only or any(text in part for text in only):
                progress(part)
                rows += measure()
    sys.exit(finish(TITLE, rows, chosen(), json_file))


def _workload(name: str, workload: Workload, runner: Runner) -> list[Row]:
    x = workload.inputs()
    program = random_program(workload.make().eval(), x, workload.recipe, workload.activations)
    written = write_file(EXPORTER, program, workload.activations)
    data, stock, (container,) = written.data, EXPORTER.dense(written.data), written.companions.values()
    limit = FILE_FACTOR * theoretical_bytes(program) + FILE_EXTRA
    rows = [
        at_most(f"{name}: .pte", len(data), "bytes", limit),
        at_most(f"{name}: .qnz", len(container), "bytes", limit),
        Row(f"{name}: stock int8 .pte", len(stock), "bytes"),
    ]
    if workload.make is stack:  # in one layer of 1024x4096 scales and biases, which both files hold, leave no more than 7.3
        rows += [
            at_least(f"{name}: {what} to stock", len(stock) / len(file), "x", SMALLER)
            for what, file in ((".pte", data), (".qnz", container))
        ]
    ((found,), (expected,)) = EXPORTER.run(data, ((x,),))[0], EXPORTER.run(stock, ((x,),))[0]
    rows.append(at_most(f"{name}: values that differ from stock", int((found != expected).sum()), "", 0))
    if name.startswith(("Linear", "Conv")) and workload.activations is STATIC:
        output = next(node for node in written.lowered.exported.graph.nodes if node.op == "output").args[0][0]
        agreement = compare(found, written.lowered.simulate((x,))[0], float(output.args[1]))
        assert agreement.steps is not None
        rows += [
            at_most(f"{name}: steps to simulation", round(agreement.steps, 3), "", 1),
            at_most(f"{name}: values off by a step", 100 * agreement.differing, "%", 5),
        ]
    tables, dense = runner.load(x, data, stock)
    return [
        *rows,
        at_most(f"{name}: time to stock", tables.run_ms / dense.run_ms, "x", TIME),
        Row(f"{name}: time", tables.run_ms, "ms"),
        at_most(f"{name}: load to stock", tables.load_ms / dense.load_ms, "x", LOAD),
        Row(f"{name}: load", tables.load_ms, "ms"),
        at_most(f"{name}: memory after load to stock", tables.resident / dense.resident, "x", RAM),
        at_most(f"{name}: peak of loading to stock", tables.peak / dense.peak, "x", PEAK),
        Row(f"{name}: peak of loading", tables.peak, "MB"),
    ]


def _rebuild() -> list[Row]:
    rows = []
    for name, model, x, recipe in (
        ("Linear 4096x4096", nn.Sequential(nn.Linear(4096, 4096)), torch.randn(1, 4096), LINEAR),
        ("Conv 3x3 512", nn.Sequential(*(nn.Conv2d(512, 512, 3) for _ in range(4))), torch.randn(1, 512, 14, 14), CONV),
    ):
        activations = STATIC if recipe is CONV else DYNAMIC
        written = write_file(EXPORTER, random_program(model.eval(), x, recipe, activations), activations)
        seconds = []
        for _ in range(10):
            start = time.perf_counter()
            rebuilt = EXPORTER.rebuild(written.companions)
            seconds.append(time.perf_counter() - start)
        weights = sum(weight.int8().numel() for weight in written.lowered.weights.values())
        rows.append(at_most(f"{name}: rebuilt and stock differ", int(rebuilt != EXPORTER.dense(written.data)), "", 0))
        rows.append(at_least(f"{name}: rebuild of .qnz", weights / min(seconds) / 1e6, "MB/s", REBUILD))
    return rows


def _embedding(runner: Runner) -> list[Row]:
    ids = torch.tensor([[7]])
    program = random_program(nn.Sequential(nn.Embedding(*EMBEDDING)).eval(), ids, LINEAR, DYNAMIC)
    data = write_file(EXPORTER, program, DYNAMIC).data
    (found,) = runner.load(ids, data)
    size = len(data) / 2**20
    return [
        at_most("Embedding 30522x768: .pte", len(data), "bytes", EMBEDDING_FILE * theoretical_bytes(program)),
        at_most("Embedding 30522x768: memory after load to its file", found.resident / size, "x", EMBEDDING_RAM),
        Row("Embedding 30522x768: one token", 1e3 * found.run_ms, "us"),
    ]


def _graph_form(runner: Runner) -> list[Row]:
    """The stack of 12 layers, its weights looked up at every run."""
    x = torch.randn(1, 2048)
    program = random_program(stack().eval(), x, ONE_CODEBOOK, DYNAMIC)
    delegate = write_file(EXPORTER, program, DYNAMIC).data
    graph = write_file(EXPORTER, program, Activations.NONE, ExecutorchOptions(form="graph")).data
    looked_up, expanded = runner.load(x, graph, delegate)
    name = "12 layers of 2048x2048, graph form"
    return [
        Row(f"{name}: .pte", len(graph), "bytes"),
        Row(f"{name}: memory after load", looked_up.resident, "MB"),
        Row(f"{name}: memory after load to delegate form", looked_up.resident / expanded.resident, "x"),
        Row(f"{name}: peak of loading to delegate form", looked_up.peak / expanded.peak, "x"),
        Row(f"{name}: time to delegate form", looked_up.run_ms / expanded.run_ms, "x"),
    ]


if __name__ == "__main__":
    main()
