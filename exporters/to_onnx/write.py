"""From a Program to the bytes of a `.onnx` file for stock onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common

from qn_deploy.errors import ExportError, first_line
from qn_deploy.exporting.exporter import Written
from qn_deploy.graph.operators import INT8_LAYERS
from qn_deploy.lowering.lower import Activations, Lowered
from qn_deploy.program.program import Program
from qn_deploy.quiet import quiet
from qn_deploy.targets import Target
from qn_deploy.weights.compressed import CompressedWeight, PQWeight

from ..kernels.memory import in_memory, remarks, to_keep
from . import linears, modules, passes, shell, transposed, trim
from .compressed import keep_tables
from .fusions import check_fusions
from .large import externalize
from .library import LIBRARY
from .metadata import describe, facts
from .options import OnnxOptions
from .tables import has_uint4

OPSET = 18
OPSET_OF_UINT4 = 21


def write(program: Program, simulated: Lowered, lowered: Lowered, options: OnnxOptions, target: Target) -> Written:
    """Writes a program with standard ONNX operators only; a layer that keeps its table is a function of them.

    Static activations are quantize/dequantize pairs around each operator, dynamic ones DynamicQuantizeLinear before each linear.

    Args:
        program: what to write.
        simulated: the form that the file must agree with.
        lowered: the form that is translated: the same, or the one with float activations if they are dynamic.
        options: what the export chose.
        target: where the file is to run.

    Raises:
        ExportError: an operator has no ONNX form, the file does not pass onnx's checker, or a layer lost its fusion.
    """
    is_dynamic = simulated.form.activations is Activations.DYNAMIC
    model = _to_onnx(lowered, program)
    passes.fold_constants(model)
    passes.copy_constant_outputs(model)
    passes.unsigned_activations(model, lowered.weights)
    passes.absorb_clamps(model)
    transposed.sum_integers(model)
    linears.flatten_linears(model, lowered.weights)
    passes.pool_globally(model)
    passes.unpair_weights(model, _float_readers(lowered, simulated.form.activations))
    passes.insert_tables(model, lowered.weights)
    if is_dynamic:
        linears.quantize_linear_inputs(model)
    trim.settle_shapes(model)
    trim.join_reshapes(model)
    common.RemoveUnusedNodesPass()(model)
    trim.share_constants(model)
    common.CommonSubexpressionEliminationPass()(model)
    trim.strip(model)
    model.graph.name = "qn_deploy"
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # onnx-ir repeats the shape of each initializer there
    tables = to_keep(lowered.weights, options.memory)
    memory = in_memory(lowered.weights, keep_tables(proto, tables), options.memory)
    describe(proto, program, simulated)
    modules.shorten(proto)
    parts = externalize(proto)
    data: bytes = proto.SerializeToString(deterministic=True)
    if not parts:  # the checker would look for external data in the current folder
        _check(data)
    return Written(
        data=data,
        lowered=simulated,
        notes=(*_fusions(data, parts, options), *remarks(memory, options.memory, f" where {LIBRARY} is registered")),
        companions=shell.split(data, simulated.weights, parts) if options.shell else {},
        facts=facts(proto, simulated, target),
        parts=parts,
        folded=_folded(program, lowered, proto),
        memory=memory,
    )


def _folded(program: Program, lowered: Lowered, model: onnx.ModelProto) -> tuple[str, ...]:
    """The weights of which no part is in the file: they were looked up by constants, and the rows found are a constant now."""
    before = lowered.exported.graph_signature
    read = [*before.inputs_to_parameters.values(), *before.inputs_to_buffers.values()]
    written = [*(entry.name for entry in model.graph.initializer), *(name for node in model.graph.node for name in node.output)]

    def hold(names: list[str], weight: str) -> bool:
        return any(name == weight or name.startswith((f"{weight}/", f"{weight}_")) for name in names)

    return tuple(weight for weight in program.weights if hold(read, weight) and not hold(written, weight))


def _check(data: bytes) -> None:
    try:
        onnx.checker.check_model(data, full_check=True)
    except Exception as error:
        raise ExportError(f"the written ONNX graph does not pass onnx's checker: {first_line(error)}") from error


def _fusions(data: bytes, parts: Mapping[str, bytes], options: OnnxOptions) -> tuple[str, ...]:
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
    try:
        with quiet():
            written = torch.onnx.export(
                lowered.exported,
                dynamo=True,
                verbose=False,
                optimize=False,  # its constant folding would expand small tables
                opset_version=opset,
                input_names=program.inputs,
                output_names=program.outputs,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch.onnx can't write this graph: {first_line(error)}") from error
    assert written is not None
    return written.model
