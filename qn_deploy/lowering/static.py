"""Static activations: where they are quantized and by which ranges, and what runtimes need to compute the same with them.

PT2E places quantize/dequantize pairs where XNNPACK computes in int8, and calibrates them. Then output scales are settled (`settle.py`),
each reader gets a dequantize of its own, and biases go on their int32 grid.
"""

from __future__ import annotations

import operator
from collections import Counter
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qn_deploy.errors import ExportError
from qn_deploy.lowering.curves import CLAMPS, CURVES
from qn_deploy.lowering.insert import LAYERS, buffer
from qn_deploy.lowering.settle import is_quantized, settle
from qn_deploy.program.program import Program
from qn_deploy.quiet import quiet
from qn_deploy.weights.compressed import CompressedWeight

aten = torch.ops.aten


def calibrate(graph_module: GraphModule, program: Program) -> GraphModule:
    """The graph with a quantize and a dequantize around each activation that runtimes compute in int8, by ranges of the calibration data.

    Args:
        graph_module: of the program; it may be changed.
        program: its weights stay as they are.

    Raises:
        ExportError: a BatchNorm that should have been folded before compressing follows a compressed weight.
    """
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
                "qn_deploy.compression does, or export with --activations none"
            )
    _separate_biases(calibrated)
    _separate_dequantizes(calibrated)
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
    for node in [node for node in graph.nodes if is_quantized(node)]:
        for user in list(node.users)[1:]:
            with graph.inserting_before(user):
                user.replace_input_with(node, graph.node_copy(node))


def snap_biases(graph_module: GraphModule, weights: dict[str, CompressedWeight]) -> None:
    """Puts each bias of an int8 layer on its int32 grid, s_x * s_w.

    Runtimes round it there, one by division and one by multiplication with the reciprocal, and do not always meet.
    """
    for node in graph_module.graph.nodes:
        if node.target not in LAYERS or len(node.args) < 3 or getattr(node.args[2], "op", None) != "get_attr":
            continue
        x, weight, bias = node.args[:3]
        values = weight.args[0].target if weight.args else None  # a float weight comes from nowhere
        if is_quantized(x) and values in weights:
            scale = torch.tensor(x.args[1], dtype=torch.float32) * weights[values].scale
            value = operator.attrgetter(bias.target)(graph_module).detach()
            with graph_module.graph.inserting_before(node):
                node.replace_input_with(bias, buffer(graph_module, f"{bias.target}_snapped", (value / scale).round() * scale))
