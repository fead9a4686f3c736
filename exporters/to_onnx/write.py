"""From a Program to the bytes of a `.onnx` file for stock onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from qn_deploy.errors import ExportError
from qn_deploy.exporting.exporter import DEFAULT, Options, Written
from qn_deploy.graph.operators import INT8_LAYERS
from qn_deploy.lowering.lower import Activations, Lowered, input_names, lower
from qn_deploy.program.program import Program
from qn_deploy.quiet import quiet
from qn_deploy.weights.compressed import CompressedWeight, PQWeight

from . import linears, passes, shell, transposed
from .fusions import check_fusions
from .large import externalize
from .metadata import describe, facts
from .tables import has_uint4

OPSET = 18
OPSET_OF_UINT4 = 21


def write(program: Program, activations: Activations, options: Options = DEFAULT) -> Written:
    """Writes a program with standard ONNX operators only.

    Static activations are quantize/dequantize pairs around each operator, dynamic ones DynamicQuantizeLinear before each linear.

    Raises:
        ExportError: an operator has no ONNX form, the file does not pass onnx's checker, or a layer lost its fusion.
    """
    # Dynamic quantization has its own operators in ONNX; they replace the linears of the graph with float activations.
    lowered = lower(program, Activations.NONE if activations is Activations.DYNAMIC else activations)
    model = _to_onnx(lowered, program)
    passes.fold_constants(model)
    passes.unsigned_activations(model, lowered.weights)
    passes.absorb_clamps(model)
    transposed.sum_integers(model)
    linears.flatten_linears(model, lowered.weights)
    passes.pool_globally(model)
    passes.unpair_weights(model, _float_readers(lowered, activations))
    passes.insert_tables(model, lowered.weights)
    if activations is Activations.DYNAMIC:
        linears.quantize_linear_inputs(model)
        lowered = lower(program, activations)
    common.RemoveUnusedNodesPass()(model)
    passes.strip(model)
    model.graph.name = "qn_deploy"
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # onnx-ir repeats the shape of each initializer there
    describe(proto, program, lowered)
    parts = externalize(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    if not parts:  # the checker would look for external data in the current folder
        _check(data)
    companions = shell.split(data, lowered.weights, parts) if options.shell else {}
    return Written(data, lowered, _fusions(data, parts, options), companions, facts(proto, lowered), parts)


def _check(data: bytes) -> None:
    try:
        onnx.checker.check_model(data, full_check=True)
    except Exception as error:
        raise ExportError(f"the written ONNX graph does not pass onnx's checker: {str(error).strip().splitlines()[0]}") from error


def _fusions(data: bytes, parts: Mapping[str, bytes], options: Options) -> tuple[str, ...]:
    """Remarks on layers that do not run on int8 kernels.

    Raises:
        ExportError: a fusion is lost that should be there, and `options` do not allow it.
    """
    findings = check_fusions(data, parts)
    if findings.lost and not options.allow_unfused:
        raise ExportError(
            f"onnxruntime would run {len(findings.lost)} layers in float, 10 to 19 times slower: {'; '.join(findings.lost)}. "
            "Export with --allow-unfused to write the file all the same"
        )
    floats = f"onnxruntime has no int8 kernel for {', '.join(findings.float)}: run in float"
    return (*findings.lost, *([floats] if findings.float else ()))


def _float_readers(lowered: Lowered, activations: Activations) -> dict[str, CompressedWeight]:
    """The weights beside float activations: those of recurrent layers, and all of them if no activation is quantized."""
    names = lowered.exported.graph_signature.inputs_to_buffers
    layers = [node for node in lowered.exported.graph.nodes if node.target in INT8_LAYERS and activations is not Activations.NONE]
    int8 = {names.get(source.name) for node in layers for source in node.args[1].args[:1]}
    return {name: weight for name, weight in lowered.weights.items() if name not in int8}


def _to_onnx(lowered: Lowered, program: Program) -> ir.Model:
    packed = any(isinstance(weight, PQWeight) and has_uint4(weight) for weight in lowered.weights.values())
    opset = OPSET_OF_UINT4 if packed else OPSET
    outputs = len(program.golden.outputs)
    output_names = ["output"] if outputs == 1 else [f"output_{index}" for index in range(outputs)]
    try:
        with quiet():
            written = torch.onnx.export(
                lowered.exported,
                dynamo=True,
                verbose=False,
                optimize=False,  # its constant folding would expand small tables
                opset_version=opset,
                input_names=input_names(lowered.exported),
                output_names=output_names,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch.onnx can't write this graph: {str(error).strip().splitlines()[0]}") from error
    assert written is not None
    return written.model
