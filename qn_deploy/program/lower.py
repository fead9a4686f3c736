"""Lowering: the float graph of a Program becomes a graph that computes with the compressed int8 weights.

One pass a concern, in this order:
    1. static only: PT2E places quantize/dequantize pairs around the activations and calibrates them (weights stay out of it), and the
       ranges of additions are settled so that all runtimes add alike
    2. each compressed weight becomes `dequantize_per_channel(int8 buffer, scale)`, an embedding a lookup in codes, then in centroids
    3. dynamic only: the input of each int8 linear is quantized by its own range at run time

The result is plain torch: run by torch it *is* the simulated program that every runtime is compared with.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from qn_deploy.compress.weights import INT8_MAX, CompressedWeight, PQWeight
from qn_deploy.errors import ExportError, InputError
from qn_deploy.program.program import Batch, Program
from qn_deploy.program.settle import settle_additions
from qn_deploy.quiet import quiet

aten = torch.ops.aten
LINEAR = aten.linear.default
CONVOLUTIONS = (aten.conv2d.default, aten.conv1d.default, aten.convolution.default, aten.conv2d.padding, aten.conv1d.padding)
INT8_SUFFIX = "_int8"  # "conv.weight" is stored as the buffer "conv.weight_int8"


class Activations(str, Enum):
    """How activations are quantized: int8 by calibrated ranges, int8 by each input's own range, or not at all."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    NONE = "none"


@dataclass(frozen=True)
class Lowered:
    """A graph that computes with int8 weights.

    Attributes:
        exported: aten and quantized_decomposed operators; the weight W of the Program is the int8 buffer W + "_int8".
        weights: the compressed form of each such buffer (with `baked`: of each such parameter), by its name in `exported`.
        activations: how its activations are quantized.
    """

    exported: ExportedProgram
    weights: dict[str, CompressedWeight]
    activations: Activations

    def simulate(self, inputs: Batch) -> Batch:
        """Runs the simulated program in torch."""
        with torch.no_grad():
            outputs = self.exported.module()(*inputs)
        return tuple(torch.utils._pytree.tree_leaves(outputs))


def choose_activations(program: Program, asked: Activations | None) -> Activations:
    """The activation scheme for a program: as asked, else static with calibration data, else dynamic.

    Raises:
        InputError: static without calibration data, or convolutions without any way to quantize their inputs.
    """
    chosen = asked or (Activations.STATIC if program.calibration else Activations.DYNAMIC)
    if chosen is Activations.STATIC and not program.calibration:
        raise InputError("static int8 activations need calibration data: give --calibrate data.npz, or calibration= to qn_deploy.save")
    convolutions = [node.name for node in program.exported.graph.nodes if node.target in CONVOLUTIONS]
    if chosen is Activations.DYNAMIC and convolutions:
        reason = "model.pt holds none" if not program.calibration else "there are no dynamic ones"
        raise InputError(
            f"the model has {len(convolutions)} convolutions ({convolutions[0]}, ...), whose int8 activations need calibration data; "
            f"{reason}. Give --calibrate data.npz (arrays named like the inputs) with static activations, or keep activations float "
            "with --activations none"
        )
    return chosen


def lower(program: Program, activations: Activations, per_row: bool = False, baked: bool = False) -> Lowered:
    """Lowers a program to int8 weights, with activations as asked.

    Args:
        program: it is not changed.
        activations: how activations are quantized.
        per_row: dynamic ranges are taken of each row (XNNPACK) instead of the whole tensor (onnxruntime).
        baked: float constants with the dequantized values stay where int8 weights would stand (for runtimes that have no kernel for
            int8 weights with float activations); embeddings are lookups all the same.

    Raises:
        ExportError: static, and a BatchNorm that should have been folded before compressing follows a compressed weight.
    """
    graph_module: GraphModule = program.exported.module(check_guards=False)  # a copy: the program is not touched
    if activations is Activations.STATIC:
        graph_module = _calibrate(graph_module, program)
        _separate_biases(graph_module)
    weights = _insert_weights(graph_module, program, baked)
    if activations is Activations.STATIC:
        _snap_biases(graph_module, weights)
    if activations is Activations.DYNAMIC:
        _quantize_linear_inputs(graph_module, weights, per_row)
    graph_module.graph.lint()
    graph_module.recompile()
    with torch.no_grad():
        exported = torch.export.export(graph_module, program.golden.inputs, dynamic_shapes=dynamic_shapes(program.exported), strict=False)
    return Lowered(exported, weights, activations)


def input_names(exported: ExportedProgram) -> list[str]:
    """Names of the model's inputs, in the order of its arguments."""
    return [str(name) for name in exported.graph_signature.user_inputs]


def dynamic_shapes(exported: ExportedProgram) -> Any:
    """The dynamic shapes that `exported` was captured with, in the form torch.export.export takes; None if all are fixed."""
    names = set(exported.graph_signature.user_inputs)
    dims: dict[str, Any] = {}
    shapes = []
    for node in exported.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            shapes.append(
                {axis: _dim(size, exported, dims) for axis, size in enumerate(node.meta["val"].shape) if not isinstance(size, int)}
            )
    return tuple(shapes) if any(shapes) else None


def _dim(size: torch.SymInt, exported: ExportedProgram, dims: dict[str, Any]) -> Any:
    symbol = size.node.expr
    if not symbol.is_Symbol:
        return torch.export.Dim.AUTO  # derived from another dimension, as 2*s0: torch.export finds the relation again
    bounds = exported.range_constraints[symbol]
    upper = int(bounds.upper) if bounds.upper.is_finite and bounds.upper < 2**31 else None
    return dims.setdefault(str(symbol), torch.export.Dim(str(symbol), min=max(int(bounds.lower), 0), max=upper))


def _calibrate(graph_module: GraphModule, program: Program) -> GraphModule:
    with quiet():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True)

    class ActivationQuantizer(XNNPACKQuantizer):  # type: ignore[misc]
        """XNNPACK's placement of activation ranges; weights have their scale already and are left alone."""

        # What matches BatchNorm serves training only, and takes seconds: its patterns are captured anew each time.
        SUPPORTED_PATTERNS = tuple(pattern for pattern in XNNPACKQuantizer.SUPPORTED_PATTERNS if "_bn" not in pattern.name)

        def annotate(self, model: GraphModule) -> GraphModule:
            model = super().annotate(model)
            for node in model.graph.nodes:
                annotation = node.meta.get("quantization_annotation")
                if annotation is None:
                    continue
                parameters = [source for source in annotation.input_qspec_map if source.op == "get_attr"]
                for source in parameters:
                    del annotation.input_qspec_map[source]
                if node.target is aten.adaptive_avg_pool2d.default:
                    # A range of its own, smaller than its input's. Sharing it, as PT2E would, a mean of n values is a tie once in n times.
                    annotation.output_qspec = config.output_activation
                if node.target in (LINEAR, *CONVOLUTIONS) and node.args[1].target not in program.weights:
                    del node.meta["quantization_annotation"]  # a float weight makes a float layer
            return model

    quantizer = ActivationQuantizer().set_global(config)
    with quiet(), torch.no_grad():
        prepared = prepare_pt2e(graph_module, quantizer)
        for batch in program.calibration:
            prepared(*batch)
        calibrated: GraphModule = convert_pt2e(prepared, fold_quantize=False)
    settle_additions(calibrated.graph)
    state = calibrated.state_dict()
    for name in program.weights:  # PT2E folds each BatchNorm that is left into the float weight, which the int8 one would not know
        if name in state and not torch.equal(state[name], program.exported.state_dict[name]):
            raise ExportError(
                f"{name} is followed by a BatchNorm that is not folded into it; fold it before the weight is compressed, as "
                "qn_deploy.compress does, or export with --activations none"
            )
    return calibrated


def _separate_biases(graph_module: GraphModule) -> None:
    """Gives each call of a layer a bias of its own: ExecuTorch quantizes a bias once, by the input scale of the first call."""
    calls: Counter[str] = Counter()
    for node in graph_module.graph.nodes:
        bias = node.args[2] if node.target in (LINEAR, *CONVOLUTIONS) and len(node.args) > 2 else None
        if bias is None or bias.op != "get_attr":
            continue
        name = str(bias.target)
        if calls[name]:
            value = operator.attrgetter(name)(graph_module).detach().clone()
            with graph_module.graph.inserting_before(node):
                node.replace_input_with(bias, _buffer(graph_module, f"{name}_{calls[name]}", value))
        calls[name] += 1


def _snap_biases(graph_module: GraphModule, weights: dict[str, CompressedWeight]) -> None:
    """Puts each bias of an int8 layer on its int32 grid, s_x * s_w.

    Runtimes round it there, one by division and one by multiplication with the reciprocal, and do not always meet.
    """
    decomposed = torch.ops.quantized_decomposed
    for node in graph_module.graph.nodes:
        if node.target not in (LINEAR, *CONVOLUTIONS) or len(node.args) < 3 or getattr(node.args[2], "op", None) != "get_attr":
            continue
        x, weight, bias = node.args[:3]
        if x.target is decomposed.dequantize_per_tensor.default and weight.target is decomposed.dequantize_per_channel.default:
            scale = torch.tensor(x.args[1], dtype=torch.float32) * weights[str(weight.args[0].target)].scale
            value = operator.attrgetter(bias.target)(graph_module).detach()
            with graph_module.graph.inserting_before(node):
                node.replace_input_with(bias, _buffer(graph_module, f"{bias.target}_snapped", (value / scale).round() * scale))


def _insert_weights(graph_module: GraphModule, program: Program, baked: bool) -> dict[str, CompressedWeight]:
    """Replaces each compressed float weight by its int8 buffer and a dequantize node, or by table lookups under an embedding."""
    stored: dict[str, CompressedWeight] = {}
    for node in [node for node in graph_module.graph.nodes if node.op == "get_attr"]:
        weight = program.weights.get(str(node.target))
        if weight is None:
            continue
        for user in list(node.users):
            if user.target is aten.embedding.default:
                _look_up(graph_module, user, str(node.target), weight)
        if node.users and baked:
            stored[str(node.target)] = weight
        elif node.users:
            name = f"{node.target}{INT8_SUFFIX}"
            stored[name] = weight
            # A layer that is called twice gets two dequantize nodes with a zero point each: onnxruntime names the bias that it
            # quantizes for a layer after the zero point, and refuses to load a second one of the same name.
            for index, user in enumerate(list(node.users)):
                with graph_module.graph.inserting_before(user):
                    user.replace_input_with(node, _dequantize(graph_module, name, weight, index))
        if not node.users:
            graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    return stored


def _dequantize(graph_module: GraphModule, name: str, weight: CompressedWeight, reader: int) -> Node:
    out = weight.shape[0]
    values = _buffer(graph_module, name, weight.int8())
    scale = _buffer(graph_module, f"{name}_scale", weight.scale.expand(out).contiguous())
    zero = _buffer(graph_module, f"{name}_zero_point{reader or ''}", torch.zeros(out, dtype=torch.int64))
    operand = torch.ops.quantized_decomposed.dequantize_per_channel.default
    return graph_module.graph.call_function(operand, (values, scale, zero, 0, -INT8_MAX, INT8_MAX, torch.int8))


def _look_up(graph_module: GraphModule, embedding: Node, name: str, weight: CompressedWeight) -> None:
    """embedding(weight, ids) -> rows of int8 values * scale, from a table by its codes: nothing is ever expanded."""
    graph, ids = graph_module.graph, embedding.args[1]
    call = graph.call_function
    with graph.inserting_before(embedding):
        if isinstance(weight, PQWeight):
            values = _look_up_table(graph_module, ids, name, weight)
        else:
            values = call(aten.embedding.default, (_buffer(graph_module, f"{name}{INT8_SUFFIX}", weight.int8()), ids))
        floats = call(aten._to_copy.default, (values,), {"dtype": torch.float32})
        if weight.scale.numel() > 1:
            scale = call(aten.embedding.default, (_buffer(graph_module, f"{name}_row_scale", weight.scale[:, None]), ids))
        else:
            scale = _buffer(graph_module, f"{name}_scale", weight.scale)
        embedding.replace_all_uses_with(call(aten.mul.Tensor, (floats, scale)))
    graph.erase_node(embedding)


def _look_up_table(graph_module: GraphModule, ids: Any, name: str, weight: PQWeight) -> Node:
    """int8 [..., D]: the blocks that the codes of the rows `ids` point to, side by side."""
    call = graph_module.graph.call_function
    books, size, d = weight.centroids.shape
    codes = call(aten.embedding.default, (_buffer(graph_module, f"{name}_codes", weight.codes), ids))
    rows = call(aten._to_copy.default, (codes,), {"dtype": torch.int64})
    if books > 1:
        offsets = weight.rows[0] - weight.codes[0].to(torch.int32)
        rows = call(aten.add.Tensor, (rows, _buffer(graph_module, f"{name}_offsets", offsets.long())))
    centroids = _buffer(graph_module, f"{name}_centroids", weight.centroids.reshape(books * size, d))
    return call(aten.flatten.using_ints, (call(aten.embedding.default, (centroids, rows)), -2, -1))


def _quantize_linear_inputs(graph_module: GraphModule, weights: dict[str, CompressedWeight], per_row: bool) -> None:
    """Puts choose_qparams, quantize and dequantize before each linear that computes with an int8 weight."""
    decomposed = torch.ops.quantized_decomposed
    graph = graph_module.graph
    low, high, kind = -128, 127, torch.int8
    for node in [node for node in graph.nodes if node.target is LINEAR]:
        x, weight = node.args[:2]
        if weight.op != "call_function" or str(weight.args[0].target) not in weights:
            continue
        with graph.inserting_before(node):
            if per_row:
                chosen = graph.call_function(decomposed.choose_qparams_per_token_asymmetric.default, (x, kind))
                quantize, dequantize = decomposed.quantize_per_token.default, decomposed.dequantize_per_token.default
            else:
                chosen = graph.call_function(decomposed.choose_qparams.tensor, (x, low, high, torch.finfo(torch.float32).eps, kind))
                quantize, dequantize = decomposed.quantize_per_tensor.tensor, decomposed.dequantize_per_tensor.tensor
            scale, zero = (graph.call_function(operator.getitem, (chosen, index)) for index in (0, 1))
            quantized = graph.call_function(quantize, (x, scale, zero, low, high, kind))
            output_type = (torch.float32,) if per_row else ()
            dequantized = graph.call_function(dequantize, (quantized, scale, zero, low, high, kind, *output_type))
        node.args = (dequantized, *node.args[1:])


def _buffer(graph_module: GraphModule, name: str, value: Tensor) -> Node:
    path, _, leaf = name.rpartition(".")
    owner = graph_module.get_submodule(path)
    if not hasattr(owner, leaf):
        owner.register_buffer(leaf, value)
    return graph_module.graph.get_attr(name)
