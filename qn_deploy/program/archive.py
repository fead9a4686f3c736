"""model.pt: how a Program is written to a file and comes back. No pickle in it, nothing in it is ever run before it is checked.

The manifest lists every tensor of the graph with the name that it is stored under: those on the same memory share one, and the baked values
of a compressed weight aren't stored at all, they are decoded again from its table.

tables.safetensors holds for a weight W, besides float32 W.scale [out] or [1]:
    table   W.centroids int8 [G, K, d]; W.codes uint8 or uint16 [out, B], or uint8 [ceil(out*B/2)] where two codes of 4 bits share a byte;
            W.residual_centroids and W.residual_codes alike, if its entry in the manifest says "residual"
    int8    W.values int8, of the weight's shape
    int4    W.values uint8 [ceil(n/2)], two values in two's complement a byte

manifest.json holds, besides, `ranges` {node of the graph: [low, high]}, `outputs` (their names), `classes`, `left`, `recipe`, `provenance`
and `notes`, as Program says. No calibration data is stored; the golden inputs are.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qn_deploy.errors import InputError
from qn_deploy.program.allow_list import is_path
from qn_deploy.program.container import pack, unpack
from qn_deploy.program.graph_json import dump_graph, load_graph
from qn_deploy.program.members import Members, read_json, read_members
from qn_deploy.program.program import Batch, Golden, Program
from qn_deploy.program.shapes import check_shapes
from qn_deploy.recipe import Recipe
from qn_deploy.recipe.methods import code_bits
from qn_deploy.weights.compressed import CompressedWeight, IntWeight, PQWeight
from qn_deploy.weights.packing import pack_halves, unpack_halves

Tensors = dict[str, Tensor]
_MAX_FLOAT = torch.finfo(torch.float32).max
_MAX_TEXT = 10_000
_PREFIXES = ("", "residual_")  # of the names of the first and second table of a weight


def program_to_bytes(program: Program) -> bytes:
    """The bytes of a model.pt; the same program always gives the same ones.

    Raises:
        InputError: the program holds what the format can't hold (an operator outside the list, a tensor on a GPU, ...).
    """
    _check_names(program)
    exported, weights = program.exported, program.weights
    tensors = _tensors(exported)
    for name, weight in weights.items():
        if name not in tensors or not torch.equal(tensors[name], weight.dequantize()):
            raise InputError(f"{name} has a compressed form, but the graph has no such tensor with these values; bake the weights first")
    stored = _stored_names(tensors, weights)
    manifest: dict[str, Any] = {
        "torch": torch.__version__.partition("+")[0],
        "inputs": list(program.inputs),
        "outputs": list(program.outputs),
        "recipe": None if program.recipe is None else json.loads(program.recipe.to_json()),
        "left": program.left,
        "ranges": {name: list(ends) for name, ends in program.ranges.items()},
        "classes": {name: list(classes) for name, classes in program.classes.items()},
        "provenance": list(program.provenance),
        "notes": list(program.notes),
        "weights": {name: _weight_entry(weight) for name, weight in weights.items()},
        "tensors": [_tensor_entry(name, tensor, stored[name], exported) for name, tensor in tensors.items()],
    }
    tables = {key: tensor for name, weight in weights.items() for key, tensor in _table(name, weight).items()}
    plain = {name: tensor for name, tensor in tensors.items() if stored[name] == name and name not in weights}
    members = {
        "graph.json": dump_graph(exported),
        "weights.safetensors": _dump(plain),
        "tables.safetensors": _dump(tables),
        "golden.safetensors": _dump(_named({"inputs": program.golden.inputs, "outputs": program.golden.outputs})),
    }
    return pack(manifest, members)


def program_from_bytes(data: bytes) -> Program:
    """The program of a model.pt's bytes; nothing in them is run before it is checked.

    Raises:
        InputError: they are damaged, or hold something that a program can't hold; a forged graph may raise what torch raises.
    """
    return program_from_members(read_members(data))


def program_from_members(zipped: Members) -> Program:
    """The program of a model.pt's members.

    Raises:
        InputError: as `program_from_bytes`.
    """
    manifest, members = unpack(zipped)
    _check_manifest(manifest)
    tables = _load(members["tables.safetensors"])
    weights = {name: _load_weight(name, entry, tables) for name, entry in manifest["weights"].items()}
    plain = _load(members["weights.safetensors"])
    state_dict, constants = _load_tensors(manifest["tensors"], plain, weights)
    if tables or plain:
        raise InputError(f"holds tensors that the graph doesn't use: {[*tables, *plain][:3]}")
    examples = _load(members["golden.safetensors"])
    golden = Golden(_batch("inputs", examples), _batch("outputs", examples))
    program = Program(
        exported=load_graph(read_json(members["graph.json"], "graph.json"), state_dict, constants, golden.inputs),
        golden=golden,
        outputs=tuple(manifest["outputs"]),
        weights=weights,
        ranges={name: (float(low), float(high)) for name, (low, high) in manifest["ranges"].items()},
        recipe=None if manifest["recipe"] is None else Recipe.from_json(json.dumps(manifest["recipe"])),
        left=manifest["left"],
        classes={name: tuple(classes) for name, classes in manifest["classes"].items()},
        provenance=tuple(manifest["provenance"]),
        notes=tuple(manifest["notes"]),
    )
    if [entry.fqn for entry in program.exported.module_call_graph] != [""]:
        raise InputError("graph.json does not say once how the whole graph is called; save the program again")
    _check_names(program)
    check_shapes(program.exported, golden.inputs)
    return program


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Checks the kinds of what the manifest says about the program; the tensors and weights are checked where they are read."""
    for key, (fits, expected) in _FIELDS.items():
        if key not in manifest or not fits(manifest[key]):
            raise InputError(f"the manifest's {key} is no {expected}; save the model again")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _is_list(value: Any, fits: Callable[[Any], bool] = _is_text) -> bool:
    return isinstance(value, list) and all(fits(entry) for entry in value)


def _is_map(value: Any, fits: Callable[[Any], bool] = _is_text) -> bool:
    return isinstance(value, dict) and all(fits(entry) for entry in value.values())


def _is_range(value: Any) -> bool:
    numbers = isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value)
    return numbers and -_MAX_FLOAT <= value[0] <= value[1] <= _MAX_FLOAT


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "inputs": (_is_list, "list of names"),
    "outputs": (_is_list, "list of names"),
    "recipe": (lambda value: value is None or isinstance(value, dict), "recipe"),
    "left": (_is_map, "map from names to reasons"),
    "ranges": (lambda value: _is_map(value, _is_range), "map from names to pairs of float32 numbers, the lower one first"),
    "classes": (lambda value: _is_map(value, _is_list), "map from names to lists of names"),
    "provenance": (lambda value: _is_list(value, lambda entry: isinstance(entry, dict)), "list of configurations"),
    "notes": (_is_list, "list of notes"),
    "weights": (lambda value: _is_map(value, lambda entry: isinstance(entry, dict)), "map from names to compressed weights"),
    "tensors": (lambda value: _is_list(value, lambda entry: isinstance(entry, dict)), "list of tensors"),
}


def _check_names(program: Program) -> None:
    """Checks that the ranges belong to the graph, and that each output has a name of its own."""
    nodes = {node.name for node in program.exported.graph.nodes}
    if strangers := [name for name in program.ranges if name not in nodes]:
        raise InputError(f"there is a range for {strangers[0]!r}, but the graph has no such node; calibrate the program again")
    count = len(program.exported.graph_signature.user_outputs)
    if not count == len(set(program.outputs)) == len(program.outputs) == len(program.golden.outputs):
        raise InputError(
            f"the graph has {count} outputs; expected as many different names and golden outputs, found the names {list(program.outputs)} "
            f"and {len(program.golden.outputs)} golden outputs"
        )


def _tensors(exported: ExportedProgram) -> Tensors:
    tensors = {**exported.state_dict, **exported.constants}
    for name, tensor in tensors.items():
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
            raise InputError(f"{name} is a {type(tensor).__name__} of another kind than a dense tensor; a program holds dense tensors only")
        if tensor.device.type != "cpu":
            raise InputError(f"{name} is on {tensor.device}; move the model to cpu and save it again")
        if not is_path(name):
            raise InputError(f"the name {name!r} of a tensor holds other characters than letters, digits, _ and -; rename the module")
    return tensors


def _stored_names(tensors: Tensors, weights: dict[str, CompressedWeight]) -> dict[str, str]:
    """For each tensor the name that its values are stored under: those on the same memory have one, a compressed one if there is."""
    first: dict[object, str] = {}
    stored = {}
    for name in sorted(tensors, key=lambda name: name not in weights):
        tensor = tensors[name]
        view = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else name
        stored[name] = name if name in weights else first.get(view, name)
        first.setdefault(view, name)
    return stored


def _tensor_entry(name: str, tensor: Tensor, stored: str, exported: ExportedProgram) -> dict[str, Any]:
    kind = "constant" if name in exported.constants else "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    dtype = str(tensor.dtype).removeprefix("torch.")
    entry: dict[str, Any] = {"name": name, "kind": kind, "dtype": dtype, "shape": list(tensor.shape), "stored": stored}
    if tensor.requires_grad:
        entry["requires_grad"] = True
    order = _order(tensor)
    if not tensor.is_contiguous() and order != sorted(order):
        entry["order"] = order
    return entry


def _load_tensors(entries: list[dict[str, Any]], plain: Tensors, weights: dict[str, CompressedWeight]) -> tuple[Tensors, Tensors]:
    """Parameters and buffers, and constants, by name; takes what it uses out of `plain`."""
    state_dict: Tensors = {}
    constants: Tensors = {}
    loaded: dict[tuple[str, bool], Tensor] = {}
    values: Tensors = {}
    for entry in entries:
        name, stored, is_parameter = entry["name"], entry["stored"], entry["kind"] == "parameter"
        if not is_path(name):
            raise InputError(f"the manifest names a tensor {name!r}; expected letters, digits, _ and -")
        if stored not in values:
            source = weights[stored].dequantize() if stored in weights else plain.pop(stored)
            values[stored] = _in_order(source, entry["order"]) if "order" in entry else source
        tensor = values[stored]
        if list(tensor.shape) != entry["shape"] or str(tensor.dtype) != f"torch.{entry['dtype']}":
            raise InputError(f"{name} is {tensor.dtype} {list(tensor.shape)}; the manifest says {entry['dtype']} {entry['shape']}")
        if is_parameter:
            tensor = loaded.setdefault((stored, is_parameter), nn.Parameter(tensor, bool(entry.get("requires_grad"))))
        (constants if entry["kind"] == "constant" else state_dict)[name] = tensor
    return state_dict, constants


def _weight_entry(weight: CompressedWeight) -> dict[str, Any]:
    if isinstance(weight, IntWeight):
        return {"kind": f"int{weight.bits}", "shape": list(weight.shape)}
    return {"kind": "table", "shape": list(weight.shape), **({"residual": True} if weight.residual else {})}


def _table(name: str, weight: CompressedWeight) -> Tensors:
    if isinstance(weight, IntWeight):
        return {f"{name}.values": pack_halves(weight.values) if weight.bits == 4 else weight.values, f"{name}.scale": weight.scale}
    parts = {f"{name}.scale": weight.scale}
    for prefix, table in zip(_PREFIXES, weight.tables, strict=False):
        packed = code_bits(table.centroids.shape[1]) == 4
        parts[f"{name}.{prefix}codes"] = pack_halves(table.codes) if packed else table.codes
        parts[f"{name}.{prefix}centroids"] = table.centroids
    return parts


def _load_weight(name: str, entry: dict[str, Any], tables: Tensors) -> CompressedWeight:
    scale, shape = tables.pop(f"{name}.scale"), tuple(entry["shape"])
    if entry["kind"] == "table":
        weight: PQWeight | None = None
        for prefix in reversed(_PREFIXES[: 2 if entry.get("residual") else 1]):
            codes, centroids = tables.pop(f"{name}.{prefix}codes"), tables.pop(f"{name}.{prefix}centroids")
            if codes.ndim == 1:
                codes = unpack_halves(codes, prod(shape) // centroids.shape[2]).reshape(shape[0], -1)
            weight = PQWeight(codes, centroids, scale, shape, residual=weight)
        assert weight is not None
        return weight
    if entry["kind"] == "int8":
        return IntWeight(tables.pop(f"{name}.values"), scale)
    if entry["kind"] == "int4":
        halves = unpack_halves(tables.pop(f"{name}.values"), prod(shape)).to(torch.int8)
        return IntWeight(((halves ^ 8) - 8).reshape(shape), scale, bits=4)
    raise InputError(f"{name} has a compressed form of kind {entry['kind']!r}; expected table, int8 or int4")


def _order(tensor: Tensor) -> list[int]:
    """Dimensions from the outermost in memory to the innermost: [0, 2, 3, 1] for channels_last."""
    return sorted(range(tensor.ndim), key=lambda axis: tensor.stride()[axis], reverse=True)


def _in_order(tensor: Tensor, order: list[int]) -> Tensor:
    return torch.empty_permuted(tensor.shape, order, dtype=tensor.dtype).copy_(tensor)


def _named(batches: dict[str, Batch]) -> Tensors:
    return {f"{name}.{index}": tensor for name, batch in batches.items() for index, tensor in enumerate(batch)}


def _batch(name: str, tensors: Tensors) -> Batch:
    return tuple(tensors[f"{name}.{index}"] for index in range(sum(key.startswith(f"{name}.") for key in tensors)))


def _dump(tensors: Tensors) -> bytes:
    # clone: safetensors refuses tensors that share memory, and an input may stand twice in a batch
    return safetensors.torch.save({name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()})


def _load(data: memoryview) -> Tensors:
    # clone: memory of torch's own alignment, since kernels may sum in another order without; and no views, which can't be detached in place
    return {name: tensor.clone() for name, tensor in safetensors.torch.load(bytes(data)).items()}
