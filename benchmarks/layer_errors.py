"""What the products of a trained network lose in tables and in MatMulNBits: each layer by itself, on inputs that compressed nothing.

Weights alone: activations stay float. MatMulNBits is quantized by onnxruntime's own tool and runs there. An error is that of the layer's
output, noise / signal over all its rows.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import onnx
import onnxruntime
import torch
from budget_networks import NETWORKS
from onnx import TensorProto, helper, numpy_helper
from rows import Row, at_least, chosen, clock, finish, json_option, seed_option, skip
from torch import Tensor

from qn_deploy.compression import CompressConfig
from qn_deploy.compression.compress import coded, moments_of, stages_of
from qn_deploy.compression.curvature import Curvature
from qn_deploy.compression.moments import geometry_of, inputs_at, sampled_positions, source_of
from qn_deploy.compression.targets import Target, targets
from qn_deploy.graph.walk import Walk
from qn_deploy.program.program import Batch, Program
from qn_deploy.quiet import quiet
from qn_deploy.recipe import Recipe, Rule, Table

ROOT = Path(__file__).resolve().parent.parent
PAIRS = ((Table(2, 16), 2), (Table(2, 256), 4))  # the form of ours beside MatMulNBits of so many bits, which takes more
BLOCK = 32  # weights that share a scale in MatMulNBits
INPUTS = 2048  # of a layer, at most
HELD_OUT = 4  # every fourth batch measures, and compresses nothing


@dataclass(frozen=True)
class Loss:
    """What a layer loses.

    Attributes:
        ours, theirs: noise / signal.
        our_bits, their_bits: for each weight, with centroids, scales and zero points.
    """

    ours: float
    theirs: float
    our_bits: float
    their_bits: float


@click.command(help=__doc__)
@click.option(
    "--network", "names", type=click.Choice(["minilm", "efficientnet_lite0"]), multiple=True, default=["minilm", "efficientnet_lite0"]
)
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data", help="Folder with the networks' data.")
@click.option("--threads", default=2, show_default=True)
@seed_option
@json_option
def main(names: tuple[str, ...], data: Path, threads: int, seed: int, json_file: Path | None) -> None:
    options, title = chosen(), "Layers in tables and in MatMulNBits"
    torch.set_num_threads(threads)
    progress, rows = clock(), []
    for name in names:
        if reason := NETWORKS[name].missing(data):
            progress(f"{name} is left out: {reason}")
            continue
        loaded = NETWORKS[name].load(data, 2, seed)
        for method, bits in PAIRS:
            found = list(_losses(loaded.program, loaded.batches, method, bits, seed, progress))
            rows += _rows(f"{name}: tables of {method.block_size}, K={method.centroids}, beside {bits} bits", found)
    sys.exit(finish(title, rows, options, json_file) if rows else skip(title, "no network is there", json_file))


def _losses(program: Program, batches: list[Batch], method: Table, bits: int, seed: int, progress: Callable[[str], None]) -> Iterator[Loss]:
    """Each product with a weight that both take, on the float network's own inputs."""
    held = batches[HELD_OUT - 1 :: HELD_OUT]
    calibration = [batch for index, batch in enumerate(batches, 1) if index % HELD_OUT]
    config = CompressConfig(seed=seed)
    found, _ = targets(program, Recipe((Rule(method),)))
    known, tested = Walk(program.exported, calibration), Walk(program.exported, held)
    for stage in stages_of([target for target in found if _is_product(target)]):
        reader = stage[0].weight.readers[0]
        known.until(reader)
        tested.until(reader)
        moments = moments_of(stage, known, len(calibration), config)
        x = _inputs(stage[0], tested, seed)
        for target in stage:
            weight, reason = coded(target, target.weight.value, config, Curvature.of(moments, config))
            if reason:
                continue  # no table pays there
            progress(target.name)
            matrix = target.weight.value.flatten(1).detach()
            exact, (theirs, their_bits) = x @ matrix.T, nbits(matrix, bits, x)
            ours, signal = x @ weight.dequantize().flatten(1).T, exact.square().sum()
            noise = [float((values - exact).square().sum() / signal) for values in (ours, theirs)]
            yield Loss(*noise, 8 * weight.nbytes / matrix.numel(), their_bits)


def _is_product(target: Target) -> bool:
    """True for a linear layer or a 1x1 convolution in one group, whose rows MatMulNBits can cut into blocks."""
    reader, weight = target.weight.readers[0], target.weight.value
    if source_of(reader) is None or "embedding" in str(reader.target):
        return False
    return geometry_of(reader, weight).groups == 1 and weight[0].numel() == weight.shape[1] and weight.shape[1] % BLOCK == 0


def _inputs(target: Target, walk: Walk, seed: int) -> Tensor:
    """[P, n]: what meets the rows of a weight, at places by chance."""
    reader, found = target.weight.readers[0], []
    source = source_of(reader)
    assert source is not None
    geometry = geometry_of(reader, target.weight.value)
    generator = torch.Generator().manual_seed(seed)
    for value, _ in walk.values(source):
        found.append(inputs_at(value, geometry, sampled_positions(value, geometry, INPUTS, generator))[0])
    return torch.cat(found)[:INPUTS]


def nbits(weight: Tensor, bits: int, x: Tensor) -> tuple[Tensor, float]:
    """Inputs [P, n] times a weight [out, n] in MatMulNBits, float inside, and its bits for each weight."""
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", None]) for name in "xy")
        constant = numpy_helper.from_array(weight.T.contiguous().numpy(), "weight")
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"])], "layer", [inputs], [outputs], [constant])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        tool = MatMulNBitsQuantizer(model, bits=bits, block_size=BLOCK, is_symmetric=False)
        tool.process()
    small: onnx.ModelProto = tool.model.model
    if not any(node.op_type == "MatMulNBits" for node in small.graph.node):
        raise ValueError(f"onnxruntime's tool left a weight of {list(weight.shape)} as it is")
    size = sum(numpy_helper.to_array(entry).nbytes for entry in small.graph.initializer)
    session = onnxruntime.InferenceSession(small.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), 8 * size / weight.numel()


def _rows(name: str, found: list[Loss]) -> list[Row]:
    better = sum(loss.ours < loss.theirs for loss in found)
    ratios = [loss.ours / loss.theirs for loss in found]
    return [
        at_least(f"{name}: layers where ours lose less, of {len(found)}", better, "layers", len(found)),
        Row(f"{name}: noise of ours to that of theirs, median", statistics.median(ratios), "x"),
        Row(f"{name}: the same where it is highest", max(ratios), "x"),
        Row(f"{name}: bits for each weight, ours, median", statistics.median(loss.our_bits for loss in found), "bits"),
        Row(f"{name}: bits for each weight, theirs", statistics.median(loss.their_bits for loss in found), "bits"),
    ]


if __name__ == "__main__":
    main()
