"""A product with a table on ExecuTorch, beside XNNPACK's int8 of the same weights: time of a run, load, memory.

The files are mapped into memory (qn_runner --mmap), so that codes are pages of the file. One thread; processes run in turn, A B A B.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import click
import torch
from qn_runner import Runner
from rows import Row, at_least, at_most, chosen, clock, finish, json_option, seed_option
from torch import Tensor, nn
from workloads import DYNAMIC, STATIC, random_program, stack

from qn_deploy.exporters.to_executorch import EXPORTER
from qn_deploy.exporters.to_executorch.options import ExecutorchOptions
from qn_deploy.exporting.export import write_file
from qn_deploy.lowering.lower import Activations
from qn_deploy.lowering.narrow import narrow
from qn_deploy.recipe import compressed_transformer

TITLE = "Tables that stay tables in memory, ExecuTorch"
LAYERS = {(4096, 4096): {2: 1.4, 4: 2.5}, (1024, 4096): {2: 1.0, 4: 1.0}}  # times faster than int8, by the block size
MANY, SLOWER = 128, 1.25  # rows of activations, and times int8 at most
SHARES = {2: 0.35, 4: 0.22}  # of the bytes of int8
PEAK = 1.2  # times that, at load


@click.command(help=__doc__)
@click.option("--only", multiple=True, metavar="TEXT", help="Parts whose name holds this; may be repeated.")
@click.option("--processes", default=5, show_default=True, help="For each of two programs, in turn.")
@seed_option
@json_option
def main(only: tuple[str, ...], processes: int, seed: int, json_file: Path | None) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    progress, rows = clock(), []
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(Path(name), processes, 21, "--mmap")
        parts: dict[str, Callable[[], list[Row]]] = {}
        for (out, columns), d, activations, count in product(LAYERS, SHARES, (DYNAMIC, STATIC), (1, MANY)):
            title = f"{out}x{columns}, d={d}, {activations.value}, {count} rows"
            parts[title] = partial(_layer, title, nn.Linear(columns, out), d, activations, count, runner)
        parts |= {f"12 layers of 2048x2048, d={d}": partial(_memory, d, runner) for d in SHARES}
        for title, part in parts.items():
            if not only or any(text in title for text in only):
                progress(title)
                rows += part()
    sys.exit(finish(TITLE, rows, chosen(), json_file))


def _programs(model: nn.Module, x: Tensor, d: int, activations: Activations) -> tuple[bytes, bytes]:
    """With tables, and as XNNPACK's int8; to the bit the same."""
    program = narrow(random_program(model.eval(), x, compressed_transformer(d), activations), 255 // d if d > 2 else 127)
    tables = write_file(EXPORTER, program, activations, ExecutorchOptions(memory="compressed")).data
    int8 = EXPORTER.dense(tables)
    ((found,), (expected,)) = EXPORTER.run(tables, ((x,),))[0], EXPORTER.run(int8, ((x,),))[0]
    assert torch.equal(found, expected)
    return tables, int8


def _layer(title: str, layer: nn.Linear, d: int, activations: Activations, count: int, runner: Runner) -> list[Row]:
    x = torch.randn(count, layer.in_features)
    tables, int8 = runner.load(x, *_programs(layer, x, d, activations))
    bar = LAYERS[layer.out_features, layer.in_features][d] if count == 1 else 1 / SLOWER
    return [at_least(f"{title}: int8 / table", int8.run_ms / tables.run_ms, "x", bar), Row(f"{title}: table", tables.run_ms, "ms")]


def _memory(d: int, runner: Runner) -> list[Row]:
    x = torch.randn(1, 2048)
    tables, int8 = runner.load(x, *_programs(stack(), x, d, DYNAMIC))
    size, title = 12 * 2048 * 2048 / 2**20, f"12 layers of 2048x2048, d={d}"
    return [
        at_most(f"{title}: memory to int8 weights", tables.resident / size, "x", SHARES[d]),
        at_most(f"{title}: peak at load to int8 weights", tables.peak / size, "x", PEAK * SHARES[d]),
        Row(f"{title}: memory, int8", int8.resident / size, "x"),
        Row(f"{title}: peak at load, int8", int8.peak / size, "x"),
        Row(f"{title}: load", tables.load_ms, "ms"),
        Row(f"{title}: load, int8", int8.load_ms, "ms"),
        Row(f"{title}: a run to int8", tables.run_ms / int8.run_ms, "x"),
    ]


if __name__ == "__main__":
    main()
