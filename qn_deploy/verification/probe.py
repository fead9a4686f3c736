"""A program with the output of every layer among its outputs, and what each of these layers is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qn_deploy.exporting.describe import describe_weights
from qn_deploy.graph.dynamic_shapes import export_like
from qn_deploy.graph.operators import CLAMPS, CURVES, LAYERS
from qn_deploy.program.program import Golden, Program

_aten = torch.ops.aten
_OTHERS = (_aten.add.Tensor, _aten.mul.Tensor, _aten.adaptive_avg_pool2d.default, _aten.cat.default)


@dataclass(frozen=True)
class Layer:
    """What a layer is.

    Attributes:
        name: the module's name of what has a weight, else the node's.
        operator: of aten, without its overload.
        weight: table, int8, int4 or float; empty where it has none.
        exact: the reference computes it by the runtime's rule, so they must be bit-identical.
    """

    name: str
    operator: str
    weight: str
    exact: bool


@dataclass(frozen=True)
class Probed:
    """A program with more outputs than it had: its layers, negated, and then its own.

    onnxruntime would move a quantize to the front of a plain output, which then is not what the layer computed.
    """

    layers: list[Layer]
    outputs: list[Layer]
    program: Program


def probe(program: Program, inexact: set[str]) -> Probed:
    """The program with its layers as outputs; they are exact but for those of which an operator is in `inexact`."""
    module: Any = program.exported.module(check_guards=False)  # a copy
    graph = module.graph
    output = next(node for node in graph.nodes if node.op == "output")
    forms: dict[str, str] = {name: entry.kind for name, entry in describe_weights(program).items()}
    layers: dict[Node, Layer] = {}
    for node in graph.nodes:
        if node.target in (*LAYERS, *_OTHERS, *CURVES) or (node.name in inexact and isinstance(node.meta["val"], Tensor)):
            behind = _behind(node)
            layer = layers.get(behind) or _describe(node, forms)
            layers[behind] = replace(layer, exact=layer.exact and inexact.isdisjoint((node.name, behind.name)))
    own = torch.utils._pytree.tree_leaves(output.args[0])
    outputs = {node: Layer(f"output {index}", _operator(node), "", True) for index, node in enumerate(own) if node not in layers}
    with graph.inserting_before(output):
        output.args = ((*(graph.call_function(_aten.neg.default, (layer,)) for layer in layers), *outputs),)
    codegen = graph._codegen
    codegen.pytree_info = codegen.pytree_info._replace(out_spec=torch.utils._pytree.tree_structure(output.args[0]))
    module.recompile()
    exported = export_like(module, program.exported, program.golden.inputs)
    with torch.no_grad():
        golden = Golden(program.golden.inputs, tuple(module(*program.golden.inputs)))
    # The graph has the operators of the program in its order, then those that negate; torch may name them anew.
    before, after = ([node.name for node in each.graph.nodes if node.op == "call_function"] for each in (program.exported, exported))
    names = dict(zip(before, after, strict=False))
    ranges = {names.get(name, name): held for name, held in program.ranges.items()}
    titles = tuple(f"output_{index}" for index in range(len(golden.outputs)))
    probed = replace(program, exported=exported, golden=golden, outputs=titles, ranges=ranges)
    return Probed([*layers.values()], [*outputs.values()], probed)


def _behind(layer: Node) -> Node:
    """The layer's node, or that of the clamp which runtimes compute along with it."""
    users = list(layer.users)
    return users[0] if len(users) == 1 and users[0].target in CLAMPS else layer


def _describe(layer: Node, forms: dict[str, str]) -> Layer:
    weight = next((source for source in layer.args if isinstance(source, Node) and source.op == "get_attr"), None)
    if weight is None:
        return Layer(layer.name, _operator(layer), "", True)
    form = forms.get(str(weight.target), "float")
    return Layer(str(weight.target).removesuffix(".weight"), _operator(layer), form, True)


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.").partition(".")[0]
