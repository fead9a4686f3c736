"""What a float network becomes: by us in each form, and by the runtimes' own tools and those of others, each as a program that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx
import onnxruntime
import paired
import torch
from torch import nn

from qn_deploy.bench.measure import Subject
from qn_deploy.compression import CompressConfig, compress
from qn_deploy.compression.metric import Run
from qn_deploy.compression.targets import targets
from qn_deploy.exporters.kernels.packing import SMALL
from qn_deploy.exporters.to_executorch import EXPORTER as EXECUTORCH
from qn_deploy.exporters.to_executorch.options import ExecutorchOptions
from qn_deploy.exporters.to_onnx import EXPORTER as ONNX
from qn_deploy.exporters.to_onnx.options import OnnxOptions
from qn_deploy.exporting.export import write_file
from qn_deploy.exporting.exporter import NO_PARTS
from qn_deploy.graph.dynamic_shapes import export_like
from qn_deploy.graph.lifted import unlifted, with_constants
from qn_deploy.lowering.lower import Activations
from qn_deploy.program.program import Batch, Program
from qn_deploy.quiet import quiet
from qn_deploy.recipe import Recipe, Table

BLOCK = 32  # weights that share a scale in MatMulNBits and 8da4w
MOST = 0.5  # of a network's weights that a way has to take: otherwise its figures are those of float
Call = Callable[[Batch], Batch]


@dataclass(frozen=True)
class Way:
    """One form of a network.

    Attributes:
        name: what it is.
        where: the runtime, or "torch" where only its values are known here.
        bytes: of its file, or of its weights where there is none.
        is_ours: made by this project.
        run: takes the network's inputs and gives its outputs.
        subject: to time it; None where it runs on no runtime here.
    """

    name: str
    where: str
    bytes: int
    run: Run
    subject: Subject | None
    is_ours: bool = False


def ways(
    program: Program, module: nn.Module, batches: list[Batch], activations: Activations, recipes: Mapping[str, Recipe], seed: int
) -> Iterator[tuple[str, Callable[[], Way]]]:
    """The name of each form, and what makes it; what can't be made raises.

    Args:
        program: float.
        module: that it was captured of.
        batches: that calibrate.
        activations: of ours.
        recipes: of ours, by name.
        seed: of everything random.
    """
    whole = replace(program, weights={})
    plain = {exporter.runtime: write_file(exporter, whole, Activations.NONE).data for exporter in (ONNX, EXECUTORCH)}
    for exporter in (ONNX, EXECUTORCH):
        runtime, data = exporter.runtime, plain[exporter.runtime]
        yield f"{runtime}: float", partial(_way, exporter, "float", data)
        for is_static in (False, True):
            name = f"its own int8, {'static' if is_static else 'dynamic'}"
            make = partial(exporter.own_int8, whole, data, batches[0], is_static)
            yield f"{runtime}: {name}", lambda exporter=exporter, name=name, make=make: _way(exporter, name, make())
    for bits in (4, 2):
        name = f"MatMulNBits, {bits} bits" + (", LUT" if bits == 2 else "")
        yield f"{ONNX.runtime}: {name}", lambda bits=bits, name=name: _onnx(name, nbits(plain[ONNX.runtime], bits), bits == 2)
    yield f"{EXECUTORCH.runtime}: 8da4w", lambda: _way(EXECUTORCH, "8da4w", eight_da_four_w(module, program))
    for title, recipe in recipes.items():
        small: list[Program] = []  # compressed when the first of its forms is asked for

        def compressed(recipe: Recipe = recipe, small: list[Program] = small) -> Program:
            if not small:
                small.append(compress(program, recipe, batches, CompressConfig(seed=seed)))
            return small[0]

        tables = [rule.method for rule in recipe.rules if isinstance(rule.method, Table)]
        yield from _ours(title, compressed, activations, any(table.centroids <= SMALL for table in tables))
        if tables:
            yield f"coremltools: {title}", lambda title=title, recipe=recipe: palettized(title, program, recipe)


def _ours(title: str, compressed: Callable[[], Program], activations: Activations, stays: bool) -> Iterator[tuple[str, Callable[[], Way]]]:
    """A recipe in both formats, expanded to int8 when it loads, and, where some of its tables pay in memory, as tables that stay."""
    for exporter, kept in ((ONNX, OnnxOptions(memory="auto")), (EXECUTORCH, ExecutorchOptions(memory="auto"))):
        for name, options in ((title, None), (f"{title}, in memory", kept))[: 1 + stays]:

            def make(exporter: Any = exporter, name: str = name, options: Any = options) -> Way:
                written = write_file(exporter, compressed(), activations, options)
                return replace(_way(exporter, name, written.data), is_ours=True)

            yield f"{exporter.runtime}: {name}", make


def _way(exporter: Any, name: str, data: bytes) -> Way:
    subject = Subject(name, exporter.runtime, data, NO_PARTS, open_onnx if exporter is ONNX else open_pte)
    return _loaded(name, exporter.runtime, subject)


def _onnx(name: str, data: bytes, lut: bool) -> Way:
    return _loaded(name, ONNX.runtime, Subject(name, ONNX.runtime, data, NO_PARTS, open_lut if lut else open_onnx))


def _loaded(name: str, runtime: str, subject: Subject) -> Way:
    assert subject.opened is not None
    call = subject.opened(subject.data, subject.parts)
    return Way(name, runtime, len(subject.data), lambda *inputs: call(inputs), subject)


def open_onnx(data: bytes, parts: Mapping[str, bytes]) -> Call:
    """On onnxruntime, one thread; with our library where the file has nodes for it."""
    return ONNX.opened(data, parts)


def open_lut(data: bytes, parts: Mapping[str, bytes]) -> Call:
    """On onnxruntime, one thread, where MatMulNBits looks sums up."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("mlas.use_lut_gemm", "1")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def call(batch: Batch) -> Batch:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)}
        return tuple(torch.from_numpy(array) for array in session.run(None, feeds))

    return call


def open_pte(data: bytes, parts: Mapping[str, bytes]) -> Call:
    """On ExecuTorch, one thread."""
    paired.one_thread()
    return EXECUTORCH.opened(data, parts)


def nbits(plain: bytes, bits: int) -> bytes:
    """A float `.onnx` with MatMulNBits in place of each product with a constant, by onnxruntime's own tool."""
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        tool = MatMulNBitsQuantizer(onnx.load_model_from_string(plain), bits=bits, block_size=BLOCK, is_symmetric=False, accuracy_level=4)
        tool.process()
    data: bytes = tool.model.model.SerializeToString()
    if len(data) > (1 - MOST / 2) * len(plain):
        raise ValueError("most of the network is no product that MatMulNBits takes")
    return data


def eight_da_four_w(module: nn.Module, program: Program) -> bytes:
    """A `.pte` of linear layers with int8 activations, a scale a row, and int4 weights, by torchao."""
    from copy import deepcopy

    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_

    from qn_deploy.exporters.to_executorch.write import lower_to_xnnpack

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if sum(layer.weight.numel() for layer in layers) < MOST * sum(weight.numel() for weight in module.parameters()):
        raise ValueError("most of the network is no linear layer")
    with quiet():
        small = deepcopy(module).eval()
        quantize_(small, Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(BLOCK)))
        exported = export_like(small, program.exported, program.golden.inputs)
    return lower_to_xnnpack(exported)[1]


def palettized(title: str, program: Program, recipe: Recipe) -> Way:
    """The same blocks by coremltools' k-means, vectors along the output channels, run in torch with float activations.

    Its bytes are those of codes, codebooks in float16 and what stays float in float16.
    """
    from coremltools.optimize.torch import palettization

    found, _ = targets(program, recipe)
    values, size = {}, 0
    for target in found:
        weight, method = target.weight.value, target.method
        if not isinstance(method, Table):
            continue
        d, bits = method.block_size, method.centroids.bit_length() - 1
        layer = nn.Linear(weight[0].numel(), len(weight), bias=False)
        layer.weight.data = weight.reshape(len(weight), -1).clone()
        config = {"n_bits": bits, "cluster_dim": d, "granularity": "per_tensor"}  # a scale a channel it has for scalars alone
        tool = palettization.PostTrainingPalettizer(
            nn.Sequential(layer), palettization.PostTrainingPalettizerConfig.from_dict({"global_config": config})
        )
        with quiet():
            values[target.name] = tool.compress()[0].weight.detach().reshape(weight.shape)
        size += weight.numel() // d * bits // 8 + 2 * d * method.centroids
    if not values:
        raise ValueError("the recipe has no tables")
    rest = sum(value.numel() for value in program.exported.state_dict.values()) - sum(value.numel() for value in values.values())
    run = unlifted(with_constants(program.exported, values))
    return Way(f"{title}, palettized", "coremltools", size + 2 * rest, run, None)
