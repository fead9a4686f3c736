"""Lowering: the float graph of a Program becomes a graph that computes with the compressed int8 weights.

One pass a concern, in this order:
    1. operators get the form that both runtimes take (`rewrite.py`)
    2. static only (`static.py`): each value that runtimes compute in int8 is quantized by its range, and the scales of additions, products
       and activations are settled so that all runtimes compute alike
    3. each compressed weight becomes `dequantize_per_channel(int8 buffer, scale)`, an embedding a lookup in codes, then in centroids
    4. dynamic only: the input of each int8 linear is quantized by its own range at run time

The result is plain torch: run by torch it *is* the simulated program that every runtime is compared with.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from enum import Enum

import torch
import torch.ao.quantization.fx._decomposed  # registers the quantized_decomposed operators
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from qn_deploy.errors import ExportError, InputError, first_line
from qn_deploy.graph.dynamic_shapes import export_like
from qn_deploy.graph.operators import LAYERS, LINEAR, Kind, kind_of
from qn_deploy.lowering.insert import insert_weights
from qn_deploy.lowering.ranges import with_ranges
from qn_deploy.lowering.rewrite import rewrite
from qn_deploy.lowering.settle import is_quantized
from qn_deploy.lowering.static import quantize_activations, snap_biases
from qn_deploy.program.program import Batch, Program
from qn_deploy.weights.compressed import CompressedWeight
from qn_deploy.weights.packing import as_table


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
class Form:
    """One way to lower a program, as an exporter wants it.

    Attributes:
        activations: how activations are quantized.
        per_row: dynamic ranges are taken of each row (XNNPACK) instead of the whole tensor (onnxruntime).
        baked: where the activations beside it are float, a weight stays a float constant of the dequantized values (for runtimes that
            have no kernel for int8 weights with float activations); embeddings are lookups all the same.
    """

    activations: Activations
    per_row: bool = False
    baked: bool = False


@dataclass(frozen=True)
class Lowered:
    """A graph that computes with int8 weights.

    Attributes:
        exported: aten and quantized_decomposed operators; the weight W of the Program is the int8 buffer W + "_int8".
        weights: the compressed form of each such buffer, and of each parameter that stayed float, by its name in `exported`; 4-bit values
            are tables there.
        form: the way in which it was lowered.
    """

    exported: ExportedProgram
    weights: dict[str, CompressedWeight]
    form: Form

    def simulate(self, inputs: Batch) -> Batch:
        """Runs the simulated program in torch.

        Raises:
            ExportError: torch can't run it on these inputs: a token outside an embedding, a size that a guard excludes.
        """
        try:
            with torch.no_grad():
                outputs = self.exported.module()(*inputs)
        except Exception as error:
            raise ExportError(
                f"torch can't run the program on these inputs ({first_line(error)}); give inputs that the model knows"
            ) from error
        return tuple(torch.utils._pytree.tree_leaves(outputs))


def choose_activations(program: Program, asked: Activations | None) -> Activations:
    """The activation scheme for a program: as asked, else static if it was calibrated, else dynamic.

    Raises:
        InputError: static without ranges, or convolutions without any way to quantize their inputs.
    """
    chosen = asked or (Activations.STATIC if program.ranges else Activations.DYNAMIC)
    if chosen.is_static and not program.ranges:
        raise InputError(
            "static int8 activations need calibration data: give --calibrate data.npz, or call qn_deploy.calibrate before qn_deploy.save"
        )
    convolutions = [node.name for node in program.exported.graph.nodes if kind_of(node) in (Kind.CONVOLUTION, Kind.TRANSPOSED)]
    if chosen is Activations.DYNAMIC and convolutions:
        reason = "model.pt holds none" if not program.ranges else "there are no dynamic ones"
        raise InputError(
            f"the model has {len(convolutions)} convolutions ({convolutions[0]}, ...), whose int8 activations need calibration data; "
            f"{reason}. Give --calibrate data.npz (arrays named like the inputs) with static activations, or keep activations float "
            "with --activations none"
        )
    return chosen


def lower(program: Program, form: Form, dense: MutableMapping[str, Tensor] | None = None) -> Lowered:
    """Lowers a program to int8 weights, with activations as asked.

    Args:
        program: it is not changed.
        form: the way to do it.
        dense: int8 weights by their names, which all forms of this program share, so that they are expanded once; missing ones are added.

    Raises:
        InputError: static, and an activation that has to be int8 has no range.
        ExportError: a weight has a scale for each row, and QNNPACK's activations are asked for.
    """
    activations = form.activations
    graph_module, ranges = with_ranges(program)  # a copy: the program is not touched
    if activations is Activations.QNNPACK:
        _check_scales(program)
    rewrite(graph_module)
    if activations.is_static:
        quantize_activations(graph_module, program.weights, ranges)
    forms = {name: as_table(weight) or weight for name, weight in _as_read(graph_module, program.weights).items()}
    per_tensor = activations is Activations.QNNPACK
    weights = insert_weights(graph_module, forms, lambda layer: not form.baked or _takes_int8(layer, activations), per_tensor, dense)
    if activations.is_static:
        snap_biases(graph_module, weights)
    if activations is Activations.DYNAMIC:
        _quantize_linear_inputs(graph_module, weights, form.per_row)
    graph_module.graph.lint()
    graph_module.recompile()
    return Lowered(export_like(graph_module, program.exported, program.golden.inputs), weights, form)


def _check_scales(program: Program) -> None:
    layers = [node for node in program.exported.graph.nodes if node.target in LAYERS]
    read = {program.exported.graph_signature.inputs_to_parameters.get(node.args[1].name) for node in layers}
    rows = [name for name, weight in program.weights.items() if name in read and weight.scale.numel() > 1]
    if rows:
        raise ExportError(
            f"QNNPACK takes one scale for each weight; {rows[0]} and {len(rows) - 1} others have one for each row. Compress by a recipe "
            "with per_tensor=True, or export with --activations static, which XNNPACK and onnxruntime take"
        )


def _as_read(graph_module: GraphModule, weights: Mapping[str, CompressedWeight]) -> dict[str, CompressedWeight]:
    """The weights in the shapes that the graph reads after it was rewritten; the order of their values is the same."""
    shapes = {str(node.target): node.meta["val"].shape for node in graph_module.graph.find_nodes(op="get_attr") if node.target in weights}
    return {name: weight.reshaped(tuple(shapes.get(name, weight.shape))) for name, weight in weights.items()}


def _takes_int8(layer: Node, activations: Activations) -> bool:
    """True if the activations beside the layer's weight are int8, or will be."""
    if activations is Activations.DYNAMIC:
        return layer.target in LINEAR
    return layer.target in LAYERS and is_quantized(layer.args[0])


def _quantize_linear_inputs(graph_module: GraphModule, weights: dict[str, CompressedWeight], per_row: bool) -> None:
    """Puts choose_qparams, quantize and dequantize before each linear that computes with an int8 weight."""
    decomposed = torch.ops.quantized_decomposed
    graph = graph_module.graph
    low, high, kind = -128, 127, torch.int8
    for node in [node for node in graph.nodes if node.target in LINEAR]:
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
