"""What a graph does not need is taken out of it, and its values stay the same: in a small file the graph is more than the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count, product
from string import ascii_letters, digits

import numpy as np
import onnx
import onnx_ir as ir

from .graph import array_of, input_of, maker_of
from .names import COLUMN, DECODED
from .tables import shape_of

_READS_WEIGHT = (("DequantizeLinear", DECODED), ("Transpose", DECODED), ("Mul", COLUMN))  # operator, end of its input's name
_MISREAD = ("STFT", "onesided")  # 1 by its schema; onnx's shape inference and onnxruntime take what is absent for 0
_OF_NO_LAYER = ("val_", "shape/", "rows/", "columns/")  # begin the names of constants that torch.onnx and the passes before made


def settle_shapes(model: ir.Model) -> None:
    """Reshapes by a constant where at most one size is unknown, which ONNX writes as -1, instead of by a shape put together at run time."""
    graph = model.graph
    for node in graph:
        if node.op_type != "Reshape" or input_of(node, 1).const_value is not None or (shape := node.outputs[0].shape) is None:
            continue
        sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
        if sizes.count(-1) <= 1 and 0 not in sizes:
            node.replace_input_with(1, shape_of(graph, sizes))


def join_reshapes(model: ir.Model) -> None:
    """Lets a Reshape to constant sizes read what a Reshape before it reads, also with a DequantizeLinear of one scale in between.

    Those that decode and copy weights stay.
    """
    for node in model.graph:
        if node.op_type != "Reshape" or (sizes := input_of(node, 1).const_value) is None or 0 in sizes.numpy():
            continue
        if str(node.outputs[0].name).endswith(DECODED):
            continue
        values = maker_of(node, 0, "DequantizeLinear")
        reader = node if values is None or len(values.outputs[0].uses()) > 1 or array_of(input_of(values, 1)).size > 1 else values
        if (before := maker_of(reader, 0, "Reshape")) is not None:
            reader.replace_input_with(0, input_of(before, 0))


def share_constants(model: ir.Model) -> None:
    """Stores equal constants once: scales and zero points of activations, sizes and axes.

    Those of a layer stay its own: onnxruntime would not load two layers that share zero points (see `passes.insert_tables`).
    """
    graph = model.graph
    first: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if name.startswith(_OF_NO_LAYER) and not value.is_graph_output():
            array = array_of(value)
            kept = first.setdefault((str(value.dtype), array.shape, np.ascontiguousarray(array).tobytes()), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del graph.initializers[name]


def strip(model: ir.Model) -> None:
    """Removes what no runtime reads, and gives short names to inner values; the layers keep their names, for Netron and profilers.

    torch.onnx writes stack traces, more than half of a small file; a name stands in the file once for each reader.
    """
    graph = model.graph
    outputs = set(graph.outputs)
    _name_nodes(graph)
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        _drop_defaults(node, model.opset_imports[""])
    inner = [value for node in graph for value in node.outputs if value not in outputs]
    constants = list(graph.initializers.values())
    for value in (*graph.inputs, *graph.outputs, *constants, *inner):
        value.metadata_props.clear()
    for value in inner:
        value.shape = value.type = None
    unnamed = [value for value in inner if not str(value.name).endswith(DECODED)]
    unnamed += [value for value in constants if str(value.name).startswith(_OF_NO_LAYER)]
    taken = {str(value.name) for value in (*graph.inputs, *graph.outputs, *constants, *inner)}
    for value, name in zip(sorted(unnamed, key=_mentions, reverse=True), short_names(taken), strict=False):
        value.name = name
    model.metadata_props.clear()
    graph.metadata_props.clear()


def short_names(taken: Iterable[str]) -> Iterator[str]:
    """Names of one letter or digit, then of two, ..., without those that are taken."""
    taken = set(taken)
    names = ("".join(letters) for length in count(1) for letters in product(ascii_letters + digits, repeat=length))
    return (name for name in names if name not in taken)


def _mentions(value: ir.Value) -> int:
    """How often a file names a value: where it is made, and for each reader."""
    return 1 + len(value.uses())


def _name_nodes(graph: ir.Graph) -> None:
    """Names the operator that computes a layer after it, and no other."""
    layers = {
        node.outputs[0]: str(source.name).rpartition("/")[0].removesuffix(".weight")
        for node in graph
        for source in node.inputs
        if source is not None and (node.op_type, f"/{str(source.name).rpartition('/')[2]}") in _READS_WEIGHT
    }
    taken: Counter[str] = Counter()
    for node in graph:
        name = next((layers[value] for value in node.inputs if value in layers), "")
        taken[name] += 1
        node.name = f"{name}_{taken[name]}" if name and taken[name] > 1 else name  # onnxruntime refuses two nodes of one name


def _drop_defaults(node: ir.Node, opset: int) -> None:
    """Removes the attributes that say what their absence says; those of a convolution take more bytes than its scales."""
    schema = onnx.defs.get_schema(node.op_type, opset)  # a later opset may have made an input of an attribute
    plain = {"strides": 1, "dilations": 1, "pads": 0} if node.op_type == "Conv" else {}
    for name, attribute in list(node.attributes.items()):
        default = schema.attributes[name].default_value
        is_default = default.type != onnx.AttributeProto.UNDEFINED and onnx.helper.get_attribute_value(default) == _value(attribute)
        if (is_default and (node.op_type, name) != _MISREAD) or (name in plain and set(attribute.as_ints()) == {plain[name]}):
            del node.attributes[name]


def _value(attribute: ir.Attr) -> object:
    return attribute.value.encode() if attribute.type == ir.AttributeType.STRING else attribute.value
