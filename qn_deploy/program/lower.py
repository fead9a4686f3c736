"""Lowering: the float graph of a Program becomes a graph that computes with the compressed int8 weights.

One pass a concern, in this order:
    1. static only: PT2E places quantize/dequantize pairs around the activations and calibrates them (weights stay out of it), and the
       ranges of additions, products and activations are settled so that all runtimes compute alike
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
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from qn_deploy.compress.packing import as_table
from qn_deploy.compress.weights import CompressedWeight
from qn_deploy.errors import ExportError, InputError
from qn_deploy.program.curves import CLAMPS, CURVES
from qn_deploy.program.insert import TRANSPOSED, buffer, insert_weights
from qn_deploy.program.program import Batch, Program
from qn_deploy.program.settle import settle
from qn_deploy.quiet import quiet

aten = torch.ops.aten
LINEAR = aten.linear.default
CONVOLUTIONS = (aten.conv2d.default, aten.conv1d.default, aten.convolution.default, aten.conv2d.padding, aten.conv1d.padding)
LAYERS = (LINEAR, *CONVOLUTIONS, *TRANSPOSED)  # what runtimes compute with int8 weights


class Activations(str, Enum):
    """How activations are quantized: int8 by calibrated ranges, int8 by each input's own range, or not at all.

    QNNPACK is static, and has one scale for each weight where XNNPACK has one for each row.
    """

    STATIC = "static"
    QNNPACK = "static-qnnpack"
    DYNAMIC = "dynamic"
    NONE = "none"

    @property
    def is_static(self) -> bool:
        """True if ranges are calibrated."""
        return self in (Activations.STATIC, Activations.QNNPACK)


@dataclass(frozen=True)
class Lowered:
    """A graph that computes with int8 weights.

    Attributes:
        exported: aten and quantized_decomposed operators; the weight W of the Program is the int8 buffer W + "_int8".
        weights: the compressed form of each such buffer, and of each parameter that stayed float, by its name in `exported`; 4-bit values
            are tables there.
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
    if chosen.is_static and not program.calibration:
        raise InputError("static int8 activations need calibration data: give --calibrate data.npz, or calibration= to qn_deploy.save")
    convolutions = [node.name for node in program.exported.graph.nodes if node.target in (*CONVOLUTIONS, *TRANSPOSED)]
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
        baked: where the activations beside it are float, a weight stays a float constant of the dequantized values (for runtimes that
            have no kernel for int8 weights with float activations); embeddings are lookups all the same.

    Raises:
        ExportError: static, and a BatchNorm that should have been folded before compressing follows a compressed weight; or a weight has
            a scale for each row, and QNNPACK's activations are asked for.
    """
    graph_module: GraphModule = program.exported.module(check_guards=False)  # a copy: the program is not touched
    if activations is Activations.QNNPACK:
        _check_scales(program)
    if activations.is_static:
        graph_module = _calibrate(graph_module, program)
        _separate_biases(graph_module)
        _separate_dequantizes(graph_module)
    forms = {name: as_table(weight) or weight for name, weight in program.weights.items()}
    per_tensor = activations is Activations.QNNPACK
    weights = insert_weights(graph_module, forms, lambda layer: not baked or _takes_int8(layer, activations), per_tensor)
    if activations.is_static:
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


def _check_scales(program: Program) -> None:
    layers = [node for node in program.exported.graph.nodes if node.target in LAYERS]
    read = {program.exported.graph_signature.inputs_to_parameters.get(node.args[1].name) for node in layers}
    rows = [name for name, weight in program.weights.items() if name in read and weight.scale.numel() > 1]
    if rows:
        raise ExportError(
            f"QNNPACK takes one scale for each weight; {rows[0]} and {len(rows) - 1} others have one for each row. Compress by a recipe "
            "with per_tensor=True, or export with --activations static, which XNNPACK and onnxruntime take"
        )


def _calibrate(graph_module: GraphModule, program: Program) -> GraphModule:
    with quiet():
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import QuantizationAnnotation

    config = get_symmetric_quantization_config(is_per_channel=True)

    class ActivationQuantizer(XNNPACKQuantizer):  # type: ignore[misc]
        """XNNPACK's placement of activation ranges; weights have their scale already and are left alone."""

        # What matches BatchNorm serves training only, and takes seconds: its patterns are captured anew each time.
        SUPPORTED_PATTERNS = tuple(pattern for pattern in XNNPACKQuantizer.SUPPORTED_PATTERNS if "_bn" not in pattern.name)

        def annotate(self, model: GraphModule) -> GraphModule:
            model = super().annotate(model)
            for node in model.graph.nodes:
                annotation = node.meta.get("quantization_annotation")
                if annotation is None and node.target is aten.adaptive_avg_pool2d.default:  # XNNPACK's knows it behind some operators only
                    annotation = QuantizationAnnotation({node.args[0]: config.input_activation}, _annotated=True)
                    node.meta["quantization_annotation"] = annotation
                if annotation is None and node.target in CURVES and _is_read_as_int8(node):  # then what else reads it reads the same
                    annotation = QuantizationAnnotation(output_qspec=config.output_activation, _annotated=True)
                    node.meta["quantization_annotation"] = annotation
                layer = node.args[0].meta.get("quantization_annotation") if _joins_layer(node) else None
                if layer is not None:  # as a ReLU, with which XNNPACK's stops
                    layer.output_qspec = None
                    annotation = QuantizationAnnotation(output_qspec=config.output_activation, _annotated=True)
                    node.meta["quantization_annotation"] = annotation
                if annotation is None:
                    continue
                parameters = [source for source in annotation.input_qspec_map if source.op == "get_attr"]
                for source in parameters:
                    del annotation.input_qspec_map[source]
                if node.target is aten.adaptive_avg_pool2d.default:
                    # A range of its own, smaller than its input's. Sharing it, as PT2E would, a mean of n values is a tie once in n times.
                    annotation.output_qspec = config.output_activation
                if node.target in LAYERS and node.args[1].target not in program.weights:
                    del node.meta["quantization_annotation"]  # a float weight makes a float layer
            return model

    quantizer = ActivationQuantizer().set_global(config)
    with quiet(), torch.no_grad():
        prepared = prepare_pt2e(graph_module, quantizer)
        for batch in program.calibration:
            prepared(*batch)
        calibrated: GraphModule = convert_pt2e(prepared, fold_quantize=False)
    settle(calibrated.graph)
    state = calibrated.state_dict()
    for name in program.weights:  # PT2E folds each BatchNorm that is left into the float weight, which the int8 one would not know
        if name in state and not torch.equal(state[name], program.exported.state_dict[name]):
            raise ExportError(
                f"{name} is followed by a BatchNorm that is not folded into it; fold it before the weight is compressed, as "
                "qn_deploy.compress does, or export with --activations none"
            )
    return calibrated


def _is_read_as_int8(node: Node) -> bool:
    annotations = [user.meta.get("quantization_annotation") for user in node.users]
    return any(annotation is not None and node in annotation.input_qspec_map for annotation in annotations)


def _joins_layer(node: Any) -> bool:
    """True for a clamp that runtimes compute together with the layer before it."""
    return node.target in CLAMPS and node.args[0].target in LAYERS and len(node.args[0].users) == 1


def _separate_biases(graph_module: GraphModule) -> None:
    """Gives each call of a layer a bias of its own: ExecuTorch quantizes a bias once, by the input scale of the first call."""
    calls: Counter[str] = Counter()
    for node in graph_module.graph.nodes:
        bias = node.args[2] if node.target in LAYERS and len(node.args) > 2 else None
        if bias is None or bias.op != "get_attr":
            continue
        name = str(bias.target)
        if calls[name]:
            value = operator.attrgetter(name)(graph_module).detach().clone()
            with graph_module.graph.inserting_before(node):
                node.replace_input_with(bias, buffer(graph_module, f"{name}_{calls[name]}", value))
        calls[name] += 1


def _separate_dequantizes(graph_module: GraphModule) -> None:
    """Gives each reader of an activation a dequantize of its own: XNNPACK can't both return its result and go on with it."""
    graph = graph_module.graph
    for node in [node for node in graph.nodes if _is_quantized(node)]:
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node))


def _snap_biases(graph_module: GraphModule, weights: dict[str, CompressedWeight]) -> None:
    """Puts each bias of an int8 layer on its int32 grid, s_x * s_w.

    Runtimes round it there, one by division and one by multiplication with the reciprocal, and do not always meet.
    """
    for node in graph_module.graph.nodes:
        if node.target not in LAYERS or len(node.args) < 3 or getattr(node.args[2], "op", None) != "get_attr":
            continue
        x, weight, bias = node.args[:3]
        values = weight.args[0].target if weight.args else None  # a float weight comes from nowhere
        if _is_quantized(x) and values in weights:
            scale = torch.tensor(x.args[1], dtype=torch.float32) * weights[values].scale
            value = operator.attrgetter(bias.target)(graph_module).detach()
            with graph_module.graph.inserting_before(node):
                node.replace_input_with(bias, buffer(graph_module, f"{bias.target}_snapped", (value / scale).round() * scale))


def _takes_int8(layer: Node, activations: Activations) -> bool:
    """True if the activations beside the layer's weight are int8, or will be."""
    if activations is Activations.DYNAMIC:
        return layer.target is LINEAR
    return layer.target in LAYERS and _is_quantized(layer.args[0])


def _is_quantized(value: Any) -> bool:
    return getattr(value, "target", None) is torch.ops.quantized_decomposed.dequantize_per_tensor.default


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
