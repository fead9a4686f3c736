"""From a Program to the bytes of a `.pte` file: one stock XNNPACK lowering, then the tables are put into the finished file."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Set
from typing import Any

import torch
from torch.export import ExportedProgram

from qn_deploy.errors import ExportError
from qn_deploy.exporting.exporter import Written
from qn_deploy.graph.operators import TRANSPOSED
from qn_deploy.lowering.insert import INT8_SUFFIX
from qn_deploy.lowering.lower import Lowered
from qn_deploy.program.program import Program
from qn_deploy.quiet import quiet
from qn_deploy.weights.compressed import INT8_MAX, IntWeight, PQWeight
from qn_deploy.weights.table_blob import DType, named_blobs

from ..kernels.memory import in_memory, remarks, to_keep
from . import tile_blob
from .graph_form import look_up_late, look_up_weights
from .layer_blob import Layer
from .options import ExecutorchOptions
from .pte import kept_in, named_data, to_tables
from .read import SINGLE_VALUES
from .refusal import refusal
from .shapes import core_operators, separate_weights, simplify_reshapes
from .stock import pack

STOCK_FORM = "model.stock.qnz"  # the companion's name
_aten = torch.ops.aten
_RECURRENT = (_aten.lstm.input, _aten.gru.input, _aten.rnn_tanh.input, _aten.rnn_relu.input)


def write(program: Program, lowered: Lowered, options: ExecutorchOptions) -> Written:
    """Writes a program for ExecuTorch with the XNNPACK delegate: in the delegate form every table packed in the delegate's named data,
    beside the stock form of the same program; in the graph form as lookups in the graph.

    XNNPACK takes no int8 weight beside float activations: without activation quantization, and in a layer that it does not quantize (an
    LSTM), a weight is float32 there, and its table expands to scale * centroid.

    Raises:
        ExportError: a dynamic dimension has no upper bound, or ExecuTorch can't lower the graph.
    """
    _check_bounds(program)
    if options.form == "graph":
        return _write_graph_form(program, lowered)
    return _write_delegate_form(program, lowered, options)


def _write_delegate_form(program: Program, lowered: Lowered, options: ExecutorchOptions) -> Written:
    asked = {f"{name}{INT8_SUFFIX}" for name in to_keep(lowered.weights, options.memory)}
    convolutions = options.memory == "compressed"  # for each XNNPACK and we turn the activations around: that does not pay in time
    edge, stock, found = lower_to_xnnpack(lowered.exported, kept=asked, convolutions=convolutions)
    portable, facts, folded = _portable(edge), _narrowed(program, edge), _folded(program, lowered, edge)
    del edge  # its delegates hold all weights once more
    transposed = _transposed(lowered.exported)
    coded = options.coding == "entropy"
    blobs = {name: named_blobs(table, dtype, transposed.get(name, ()), coded) for name, (table, dtype) in _tables(lowered).items()}
    tables = {key: blob for entry in blobs.values() for key, blob in entry.items()}
    held = set(named_data(stock))
    dense = [name.removesuffix(INT8_SUFFIX) for name, entry in blobs.items() if not entry.keys() & held]
    notes = [f"{name} is stored dense: XNNPACK does not hold it as it is, or its table would be larger" for name in dense]
    notes += [*_recurrent(program), *portable]
    layers = kept_in(stock, tuple(layer for layer in found if layer.weight in tables))
    kept = {layer.weight: weight for layer in layers if isinstance(weight := lowered.weights[layer.name], PQWeight)}
    memory = in_memory(lowered.weights, [layer.name.removesuffix(INT8_SUFFIX) for layer in layers], options.memory)
    return Written(
        data=to_tables(stock, tables | {key: tile_blob.pack(table) for key, table in kept.items()}, layers),
        lowered=lowered,
        notes=(*notes, *remarks(memory, options.memory)),
        companions={STOCK_FORM: pack(stock, tables)},
        facts=facts,
        dense=tuple(dense),
        folded=folded,
        memory=memory,
    )


def _write_graph_form(program: Program, lowered: Lowered) -> Written:
    exported, remarks = look_up_weights(lowered, program.golden.inputs)
    edge, data, _ = lower_to_xnnpack(exported, graph_form=True)
    notes = (*remarks, *_recurrent(program), *_portable(edge))
    facts = {"form": "graph", **_narrowed(program, edge)}
    return Written(data, lowered, notes, facts=facts, folded=_folded(program, lowered, edge))


def _folded(program: Program, lowered: Lowered, edge: ExportedProgram) -> tuple[str, ...]:
    """The weights that were looked up by constants: their codes are in the lowered graph, and no longer in the edge program."""
    before, after = (set(each.graph_signature.inputs_to_buffers.values()) for each in (lowered.exported, edge))
    return tuple(name for name in program.weights if f"{name}_codes" in before - after)


def _tables(lowered: Lowered) -> dict[str, tuple[PQWeight, DType]]:
    """The weights that the file may hold as tables, by their name in the graph, and what their tables expand to."""
    tables = {}
    for name, weight in lowered.weights.items():
        if name.endswith(INT8_SUFFIX):
            if isinstance(weight, PQWeight):
                tables[name] = weight, DType.INT8
        else:
            tables[name] = weight if isinstance(weight, PQWeight) else _of_single_values(weight), DType.FLOAT32
    return tables


def _transposed(exported: ExportedProgram) -> dict[str, set[int]]:
    """The number of groups of each transposed convolution that reads a weight, by the weight's name."""
    constants = {**exported.graph_signature.inputs_to_parameters, **exported.graph_signature.inputs_to_buffers}
    found: dict[str, set[int]] = {}
    for node in exported.graph.nodes:
        if node.target in TRANSPOSED:
            weight = node.args[1] if node.args[1].op == "placeholder" else node.args[1].args[0]  # of a dequantize
            found.setdefault(constants.get(str(weight), ""), set()).add(node.args[6] if len(node.args) > 6 else 1)
    return found


def _of_single_values(weight: IntWeight) -> PQWeight:
    """An int8 weight as a table: a byte for each weight, where the float32 constant that it expands to has four."""
    codes = (weight.values.to(torch.int16) + INT8_MAX).to(torch.uint8).flatten(1)
    return PQWeight(codes, SINGLE_VALUES, weight.scale, weight.shape)


def _check_bounds(program: Program) -> None:
    for symbol, bounds in program.exported.range_constraints.items():
        if not bounds.upper.is_finite or bounds.upper >= 2**31:
            names = [
                f"{node.name}, dimension {axis}"
                for node in program.exported.graph.nodes
                if node.op == "placeholder" and hasattr(node.meta.get("val"), "shape")
                for axis, size in enumerate(node.meta["val"].shape)
                if str(size) == str(symbol)
            ]
            if not names:
                continue  # a size inside of the graph, which follows from those of the inputs
            raise ExportError(
                f"{', '.join(names)} has no upper bound, and ExecuTorch plans its memory at export; "
                'save the model with torch.export.Dim("batch", max=...) in dynamic_shapes, or export with --only onnx'
            )


def _recurrent(program: Program) -> list[str]:
    """A remark on each recurrent layer: ExecuTorch has no such operator."""
    return [
        f"{node.name} is written out step by step, as ExecuTorch has no such operator: the graph grows with the sequence"
        for node in program.exported.graph.nodes
        if node.target in _RECURRENT
    ]


def _narrowed(program: Program, edge: ExportedProgram) -> dict[str, str]:
    """A fact for each dynamic dimension of the program that lowering has left fewer sizes."""
    facts = {}
    declared, left = _dynamic_sizes(program.exported), _dynamic_sizes(edge)
    for name, before, after in zip(program.inputs, declared, left, strict=True):
        for axis, (lowest, highest) in after.items():
            least, most = max(lowest, before[axis][0]), min(highest, before[axis][1])
            if before[axis] != (least, most):
                facts[f"{name}, dimension {axis}, takes only"] = str(least) if least == most else f"{least} to {most}"
    return facts


def _dynamic_sizes(exported: ExportedProgram) -> list[dict[int, tuple[int, int]]]:
    """For each input the least and most of each size that was dynamic when the graph was captured, by the dimension."""
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"}
    return [
        {axis: _bounds(size.node) for axis, size in enumerate(values[name].shape) if not isinstance(size, int)}
        for name in exported.graph_signature.user_inputs
    ]


def _bounds(size: Any) -> tuple[int, int]:
    bounds = size.shape_env.bound_sympy(size.expr)
    least, most = int(bounds.lower), int(bounds.upper) if bounds.upper.is_finite else sys.maxsize
    return least if least > 2 else 1, most  # torch says 2 where 1 is allowed, too


def lower_to_xnnpack(
    exported: Any, graph_form: bool = False, kept: Set[str] = frozenset(), convolutions: bool = False
) -> tuple[Any, bytes, tuple[Layer, ...]]:
    """The edge program and the stock .pte of a graph, and its layers that are delegates of their own.

    Args:
        exported: the graph.
        graph_form: in which no delegate holds more than one operator.
        kept: int8 weights whose layers are to be delegates of their own.
        convolutions: whether those of 1x1 convolutions are, too.

    Raises:
        ExportError: ExecuTorch can't lower it.
    """
    with quiet():
        from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS, UnsqueezeCopyConfig
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        # In the graph form a delegate for each operator: one delegate for all would hold the rows of all layers at once.
        # An unsqueeze that is left has two dynamic sizes: XNNPACK would ask for it, and then refuse the graph.
        from .kept_layers import KeptLayers, describe, separate_inputs

        configs = [config for config in ALL_PARTITIONER_CONFIGS if config is not UnsqueezeCopyConfig]
        partitioner = XnnpackPartitioner(configs, per_op_mode=graph_form)
        passes = None if graph_form else [simplify_reshapes]  # a delegate for each view would cost more than the view
        try:
            # For each convolution that it traces torch asks which of its own kernels would be fastest. Those of oneDNN and NNPACK depend
            # on the batch, and the answer for an example of less than 16 would stay in the program as its largest batch.
            with torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
                core = core_operators(exported, partitioner.ops_to_not_decompose(exported)[0])
                separate_weights(core)
                layers = describe(core, kept, convolutions)
                separate_inputs(core, layers.keys())
                alone = KeptLayers(configs, layers.keys())
                partitioners = [alone, partitioner] if layers else [partitioner]
                edge = to_edge_transform_and_lower(core, partitioner=partitioners, transform_passes=passes)
                program = edge.exported_program()
                if graph_form:
                    look_up_late(program.graph, set(program.graph_signature.user_inputs))
                return program, bytes(edge.to_executorch().buffer), tuple(layers[name] for name in alone.taken)
        except Exception as error:  # exir raises many classes; each means that it can't lower this graph
            raise ExportError(refusal(error)) from error


def _portable(edge: Any) -> list[str]:
    """What XNNPACK left to ExecuTorch's portable kernels, in one line."""
    targets = [str(getattr(node.target, "__name__", node.target)) for node in edge.graph.nodes if node.op == "call_function"]
    operators = [name.split(".")[-2] for name in targets if "." in name]  # a name without a dot: a delegate, memory, Python's arithmetic
    left = Counter(name for name in operators if name != "sym_size")
    if not left:
        return []
    return ["portable kernels, not XNNPACK, run " + ", ".join(f"{count} {name}" for name, count in sorted(left.items()))]
